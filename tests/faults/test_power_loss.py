"""After a power failure, everything reported as saved is complete on the disk."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assert_identical, lines, saved, stop_at, timeless, tiny_config

from flaxmnist.errors import StoppedError
from flaxmnist.rundir import folder
from flaxmnist.runtime import durable
from flaxmnist.training import loop


class Disk:
    """Simulates a disk after a power failure: only flushed data remain."""

    def __init__(self, root, patch):
        self.root, self.open = root, []
        self.files, self.folders, self.names = {}, {}, []
        for path in (root, *root.rglob("*")):  # The files that exist already.
            self._flushed(path)
        fsync = os.fsync

        def flush(descriptor):
            fsync(descriptor)
            # An open file keeps its inode number from being used again.
            self.open.append(os.dup(descriptor))
            self._flushed(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            self._check()

        patch.setattr(os, "fsync", flush)
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._renaming(getattr(os, name)))
        patch.setattr(shutil, "rmtree", self._deleting(shutil.rmtree))

    def _flushed(self, path):
        number = path.stat().st_ino
        if path.is_dir():
            self.folders[number] = {
                inside.name: (inside.stat().st_ino, inside.is_dir())
                for inside in path.iterdir()
            }
        else:
            self.files[number] = path.read_bytes()

    def _renaming(self, rename):
        def call(source, target, **kwargs):
            # A deletion may take effect at once.
            if Path(source).name.isdigit():
                assert max(self.steps()) > int(Path(source).name)
            rename(source, target, **kwargs)

        return call

    def _deleting(self, rmtree):
        def call(folder, **kwargs):
            # It keeps its old name on the disk until the move is flushed.
            steps = set(map(str, self.steps()))
            assert not steps & {path.name for path in folder.iterdir()}
            rmtree(folder, **kwargs)

        return call

    def steps(self):
        """The steps of the checkpoints on the disk."""
        _, run = self._find("run")
        _, checkpoints = self._find("checkpoints", run)
        return [int(name) for name in checkpoints if name.isdigit()]

    def _find(self, name, among=None):
        root = self.folders.get(self.root.stat().st_ino, {})
        number, _ = (root if among is None else among).get(name, (None, True))
        return number, self.folders.get(number, {})

    def _check(self):
        """Checks that each checkpoint on the disk is complete."""
        _, run = self._find("run")
        _, checkpoints = self._find("checkpoints", run)
        for name, (number, _) in checkpoints.items():
            if name.isdigit():
                content = self._content(number)
                assert {"_CHECKPOINT_METADATA", "record/metadata"} <= set(content)
                assert all(content.values()), name

    def _content(self, number, prefix=""):
        """The files below a directory."""
        assert number in self.folders, prefix
        found = {}
        for name, (inside, is_folder) in self.folders[number].items():
            if is_folder:
                found |= self._content(inside, f"{prefix}{name}/")
            else:
                found[prefix + name] = self.files.get(inside)
        return found

    def write(self, target):
        """Copies the content of the disk to another directory."""
        self._write(self.root.stat().st_ino, target)
        for descriptor in self.open:
            os.close(descriptor)

    def _write(self, number, target):
        target.mkdir()
        for name, (inside, is_folder) in self.folders.get(number, {}).items():
            if is_folder:
                self._write(inside, target / name)
            else:
                (target / name).write_bytes(self.files.get(inside, b""))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_a_step_reported_as_saved_survives_a_power_failure(
    finished_run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "disk").mkdir()
    config = tiny_config(checkpoint_every=5, keep_checkpoints=2)
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "disk", patch)
        stop_at((30, "train"), patch)
        with pytest.raises(StoppedError, match="which is saved") as stopped:
            loop.train_and_evaluate(config, tmp_path / "disk" / "run")
        disk.write(tmp_path / "after")
    run = tmp_path / "after" / "run"
    step = int(re.search(r"at step (\d+)", str(stopped.value))[1])
    assert 30 < step <= 35
    assert set(folder.saved_steps(run)) >= {20, 30, step}
    capsys.readouterr()
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "after", patch)
        loop.train_and_evaluate(config, run)
        disk.write(tmp_path / "end")
    said = capsys.readouterr()
    assert f"resumes at step {step}" in said.out
    assert said.err == ""
    end = tmp_path / "end" / "run"
    assert_identical(saved(config, end)[0], saved(config, finished_run[0])[0])
    assert timeless(lines(end)) == timeless(lines(finished_run[0]))
    assert json.loads((end / "summary.json").read_text())["step"] == 40
    assert (end / "config.json").read_bytes() == (run / "config.json").read_bytes()
    events = [path for path in (end / "tensorboard").rglob("*") if path.is_file()]
    assert len(events) == 6
    assert all(path.stat().st_size for path in events)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_a_moved_file_has_only_its_new_name_after_a_power_failure(
    tmp_path, monkeypatch
):
    source, target = tmp_path / "disk" / "a" / "x", tmp_path / "disk" / "b" / "x"
    for path in (source, target):
        path.parent.mkdir(parents=True)
    source.touch()
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "disk", patch)
        durable.replace(source, target)
        disk.write(tmp_path / "after")
    after = tmp_path / "after"
    assert list(after.rglob("x")) == [after / "b" / "x"]


@pytest.mark.parametrize("call", ["mkdir", "fsync"])
def test_a_failed_creation_of_a_directory_leaves_no_parents(
    call, tmp_path, monkeypatch
):
    calls, original = [], getattr(os, call)

    def fill_up(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    (tmp_path / "old").mkdir()
    monkeypatch.setattr(os, call, fill_up)
    with pytest.raises(OSError, match="No space"):
        durable.make_directory(tmp_path / "old" / "a" / "b" / "c" / "d")
    assert list((tmp_path / "old").iterdir()) == []
    made = durable.make_directory(tmp_path / "old" / "a" / "b")
    assert made == [tmp_path / "old" / "a", tmp_path / "old" / "a" / "b"]
    assert made[1].is_dir()


@pytest.fixture(params=["ext4", "xfs"])
def image(request, tmp_path):
    """A file system in a file, and what mounts another such file."""
    mounted = []

    def mount(file, folder, *options):
        folder.mkdir()
        option = ",".join(["loop", *options])
        subprocess.run(["mount", "-o", option, file, folder], check=True)
        mounted.append(folder)
        return folder

    file = tmp_path / "image"
    with file.open("wb") as opened:
        opened.truncate(400 << 20)
    try:
        subprocess.run([f"mkfs.{request.param}", "-q", file], check=True)
        # The system does not flush after a time.
        slowly = ["commit=600"] if request.param == "ext4" else []
        mount(file, tmp_path / "disk", *slowly)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to make and mount a file system, as root may: {error}")
    yield file, mounted[0], mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


FLAGS = [
    "--config=mlp:smoke",
    "--config.model.hidden=8",
    "--config.batch_size=50",
    "--config.log_every=15",
    "--config.eval_every=35",
    "--config.checkpoint_every=50",
    "--config.keep_checkpoints=1",
    "--config.optimizer.schedule=constant",
    "--num_cpu_devices=1",
]


@pytest.mark.slow
def test_the_disk_right_after_a_run_reports_a_save(image, tmp_path):
    file, disk, mount = image
    run = disk / "runs" / "a"
    command = [sys.executable, "-m", "flaxmnist.main", *FLAGS]

    def copied(name):
        """The file system as a power failure now would leave it."""
        subprocess.run(["cp", "--sparse=always", file, tmp_path / name], check=True)
        options = ["nouuid"] if _is_xfs(disk) else []
        return mount(tmp_path / name, tmp_path / f"{name}-mounted", *options)

    process = subprocess.Popen(
        [*command, f"--workdir={run}", "--config.num_steps=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 330/"):
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.readline()
    after = copied("stopped")
    process.communicate()
    step = int(re.search(r"stopped at step (\d+)", said)[1])
    again = after / "runs" / "a"
    assert folder.saved_steps(again)[-1] == step
    done = subprocess.run(
        [*command, f"--workdir={again}", f"--config.num_steps={step + 40}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"resumes at step {step}" in done.stdout
    logged = [r["step"] for r in lines(again) if r["split"] == "train"]
    assert logged == [*range(15, step + 40, 15), step + 40][: len(logged)]

    whole = shutil.copytree(again, disk / "runs" / "b", copy_function=shutil.copy)
    os.sync()
    more = [f"--workdir={whole}", f"--config.num_steps={step + 80}"]
    subprocess.run([*command, *more], check=True, capture_output=True)
    end = copied("finished") / "runs" / "b"
    assert json.loads((end / "summary.json").read_text())["step"] == step + 80
    assert (end / "report.html").read_text().rstrip().endswith("</html>")
    assert folder.saved_steps(end)[-1] == step + 80
    assert lines(end)[-1]["step"] == step + 80


def _is_xfs(folder):
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", folder], capture_output=True, text=True
    )
    return "xfs" in found.stdout
