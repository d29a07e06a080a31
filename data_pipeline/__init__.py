"""The data pipeline's commands in a checkout; its code is `tssr_jax/data_pipeline/`."""
