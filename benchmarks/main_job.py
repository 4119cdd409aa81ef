"""The main job on real rows: `python -m benchmarks.main_job [--quick] [--root DIR]`.

The same as `python main.py --phase all --preset quick --set data.root=DIR`; its result file is kept, and with it the pictures of the
README. `--quick` does it on the embedded synthetic profile at a tenth of the size.
"""

from __future__ import annotations

import json
import shutil

from benchmarks.common import RESULTS, ROOT, launch, parser
from envs.recording import read_recording, write_gif
from src.config import load_config
from src.errors import UserError
from src.evaluation.tables import save_result
from src.pipeline import start

SMALL = ["lstm.training.epochs=2", "temporal.training.epochs=2", "rl.total_timesteps=40000", "eval.episodes=50", "eval.tuning_episodes=20"]
PICTURES = ("episode", "comparison")


def main() -> None:
    """Run, keep the result, and end with it on one line."""
    given = parser(__doc__, data=True).parse_args()
    if not given.quick and not given.root.exists():
        raise UserError(f"no CICIoT2023 CSVs at '{given.root}'; name their folder with --root")
    config = load_config(ROOT / "config.yml", "quick", SMALL if given.quick else [f"data.root={given.root}"])
    with start(config, "all", None) as run:
        run.everything()
    found = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    save_result(RESULTS / f"main_job{'.quick' if given.quick else ''}.json", found)
    if not given.quick:
        for name in PICTURES:
            shutil.copyfile(run.figures[name], ROOT / "docs" / "images" / f"{name}.png")
        write_gif(read_recording(run.folder / "episode.jsonl"), ROOT / "docs" / "images" / "episode.gif", every=3)
    print(json.dumps(found))


if __name__ == "__main__":
    launch(main)
