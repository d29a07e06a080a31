"""Serves a run over HTTP, with a page to build a history by clicking.

tssr serve --workdir=runs/ml100k --open_page
"""

from absl import flags

from tssr_jax import cli
from tssr_jax.errors import UserError

_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at.", 1, 65535)
_MOST_AT_ONCE = flags.DEFINE_integer(
    "most_at_once", 64, "Requests that are answered at once; further ones get 503.", 1
)
_ALLOWED_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    None,
    "Accepted names in the header Host; * accepts any. Default: localhost and --host, or any if "
    "other machines can reach --host.",
)
_INDEX = flags.DEFINE_string(
    "index", None, "Folder of an index (tssr export --formats=index): nearly exact lists, faster."
)
_EXAMPLES = flags.DEFINE_bool(
    "examples",
    None,
    "Show histories of the data's users, without their ids, on the page. By default if only this "
    "machine can ask (--host, --allowed_hosts), and no proxy stands in between.",
)
_OPEN_PAGE = flags.DEFINE_bool("open_page", False, "Open the page in a browser.")


def main() -> None:
    """Serves until the process is stopped."""
    workdir = cli.required_workdir(_WORKDIR)
    try:
        from tssr_jax.serving.server import allowed_hosts, run_serve, shows_examples
        from tssr_jax.serving.service import Limits
    except ModuleNotFoundError as error:
        raise UserError(
            f"To serve, the package {error.name} is needed: pip install 'tssr-jax[serve]', or in "
            "the folder of this project pip install -c constraints.txt -e '.[serve]'."
        ) from error
    hosts = allowed_hosts(_HOST.value, _ALLOWED_HOSTS.value)
    limits = Limits(most_at_once=_MOST_AT_ONCE.value, allowed_hosts=hosts)
    place = _HOST.value, _PORT.value
    run_serve(
        workdir,
        *place,
        limits,
        examples=shows_examples(_HOST.value, _ALLOWED_HOSTS.value, _EXAMPLES.value),
        index=cli.optional_path(_INDEX),
        open_page=_OPEN_PAGE.value,
        raw_dir=_RAW_DIR.value,
    )
