"""One client library a file: `python -m examples.NAME [--timesteps N] [--seed N] [--scenario NAME] [--n-envs N]`."""
