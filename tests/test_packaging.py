"""What runs elsewhere runs the same: the container's and the workflow's commands are the repository's own."""

from pathlib import Path

import yaml

from main import arguments, check

ROOT = Path(__file__).parents[1]


def test_the_workflow_runs_what_must_be_green() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = (step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {}))
    assert f"python{python}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}


def test_the_container_runs_the_main_job_as_nobody_special() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    said = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines if line.split(" ", 1)[0].isupper()}
    assert said["ENTRYPOINT"] == '["python", "main.py"]'
    words = yaml.safe_load(said["CMD"])  # a JSON list is YAML
    check(arguments(words))
    assert " ".join(words) in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert said["USER"] not in ("root", "0")
