// Asks the service.

const RETRIES = 3; // of a request that finds the service busy

export async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  for (let tries = 0; ; tries++) {
    try {
      response = await fetch(path, options);
    } catch {
      throw new Error("The service can't be reached. Is it still running?");
    }
    if (response.status !== 503 || tries === RETRIES) break;
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const detail = typeof answer.detail === "string" ? answer.detail : response.statusText;
    throw new Error(`The service refused (${response.status}): ${detail}`);
  }
  return answer;
}
