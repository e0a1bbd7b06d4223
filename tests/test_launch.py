"""The launchers, checked without their clusters."""

import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig

import pytest
import yaml

from kvae import main
from kvae.core import program
from kvae.paper import sweep

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
RUN = 'python -m kvae.main "$@"'


def test_there_is_a_launcher_for_every_platform():
    assert {path.name for path in SCRIPTS} == {"gpu_evidence.sh", "local.sh", "slurm.sh", "tpu_pod.sh"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_end_with_the_training_program(path):
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    done = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert path.name == "gpu_evidence.sh" or path.read_text().splitlines()[-1].endswith(RUN)


def test_local_passes_its_arguments_on(tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "python").symlink_to(sys.executable)
    done = subprocess.run(
        ["bash", LAUNCH / "local.sh", "--config=configs/none such.py"],
        env={"PATH": f"{bin_folder}:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "kvae: --config=configs/none such.py: there is no such file" in done.stderr


@pytest.mark.parametrize(
    ("python", "seconds", "status", "pieces"), [("exit 0", 60, 0, 4), ("exit 2", 60, 2, 4), ("sleep 20", 1, 75, 1)]
)
def test_gpu_evidence_ends_when_all_is_trained(tmp_path, python, seconds, status, pieces):
    """A stand-in for Python writes its arguments to a file."""
    (tmp_path / "python").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/started\n{python}\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SECONDS_PER_PIECE": str(seconds)}
    done = subprocess.run(["bash", LAUNCH / "gpu_evidence.sh", "runs"], env=environment, capture_output=True)
    assert done.returncode == status
    commands = [shlex.split(line) for line in (tmp_path / "started").read_text().splitlines()]
    assert len(commands) == pieces
    for script, *arguments in commands:
        if script == "-m":
            main.parse(arguments[1:])
        else:
            sweep.main([*arguments, "--print"])


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (program.STOPPED, True)])
def test_slurm_requeues_a_stopped_run(tmp_path, status, requeued):
    """Stand-ins for srun and scontrol print their arguments."""
    for name, lines in {"srun": f'echo "srun $*"; exit {status}', "scontrol": 'echo "scontrol $*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sh", "--config=a b.py"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "srun --kill-on-bad-exit=1 python -m kvae.main --config=a b.py" in done.stdout
    assert ("scontrol requeue 17" in done.stdout) == requeued


def test_kubernetes_pods_can_join_their_job():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["podFailurePolicy"] and pod["restartPolicy"] == "Never"  # the policy requires Never
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
    host, _, port = environment["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert port.isdecimal()
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert "job-completion-index" in container["env"][2]["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["command"][2].endswith(RUN)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [program.STOPPED]
