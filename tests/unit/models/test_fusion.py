"""An item's text and picture become one vector, by the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.models.apply import embed_items
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue

NUM_ITEMS, WIDTHS = 7, {"text": 5, "image": 3}


@pytest.mark.parametrize("fusion", ["sum", "gate"])
def test_projections_are_mixed(fusion):
    config = default.get_config()
    config.model.update(d_model=4, d_ffn=4, num_heads=2)
    config.content.update(modalities=("text", "image"), fusion=fusion)
    model = make_model(config, Catalogue(NUM_ITEMS))
    params = init_params(model, WIDTHS, seed=0)
    rng = np.random.default_rng(0)
    features = {
        name: rng.normal(size=(NUM_ITEMS + 1, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    features["image"][3] = 0.0  # an item without a picture
    items = np.arange(1, NUM_ITEMS + 1)
    vectors = embed_items(model, params, "content", jnp.asarray(items[None]), features)[0]

    own = params["content_projection"]
    text, image = (
        features[name][items] @ own[name]["kernel"] + own[name]["bias"] for name in WIDTHS
    )
    image = image.at[2].set(own["image"]["no_content"])
    expected = text + image
    if fusion == "gate":
        both = jnp.concatenate([text, image], axis=1)
        gate = jax.nn.sigmoid(both @ own["gate"]["kernel"] + own["gate"]["bias"])
        expected = gate * text + (1 - gate) * image
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
