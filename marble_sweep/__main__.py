"""The door: Hydra composes the config, `run.py` does the work. Torch is imported only for that."""

from marble_sweep.hydra_app.main import main

if __name__ == "__main__":
    main()
