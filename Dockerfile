# Serves a saved run by HTTP on a processor (docs/guides/recommending.md):
#   docker build --tag tssr .
#   docker run --publish 8000:8000 --volume "$PWD/model:/model:ro" tssr
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints.txt /wheels/
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt \
      "tssr-jax[serve] @ file://$(find /wheels -name '*.whl')" \
    && useradd --create-home --uid 1000 tssr
USER 1000
# Compiling the programs takes half a minute before the first answer.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"]
EXPOSE 8000
ENTRYPOINT ["tssr", "serve", "--workdir=/model", "--host=0.0.0.0", "--port=8000"]
