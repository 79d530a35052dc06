"""What a command prints, and its exit status."""

import subprocess
import sys

from helpers import ROOT, run_command


def test_user_error_is_reported_in_one_line_with_status_2(tmp_path):
    done = run_command(
        "mnist",
        "--dataset=mnist",
        f"--data_dir={tmp_path}",
        f"--cache_dir={tmp_path}",
        "--preset=tiny",
        "--accelerator=cpu",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "config.json").exists()


def test_output_to_a_closed_pipe_ends_without_a_message():
    command = [sys.executable, "-m", "experiments.mnist", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        one.stdout.close()  # long before the program has anything to say
        assert one.stderr.read() == b"" and one.wait() == 1
