"""Prepares a data set without training: `tssr prepare`.

python -m data_pipeline.prepare --config=configs/hm.py --config.data.raw_dir=FOLDER
"""

from tssr_jax.main import main

if __name__ == "__main__":
    main(mode="prepare")
