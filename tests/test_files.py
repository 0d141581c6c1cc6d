"""Files are the old one or the whole new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from balancer.errors import InputError, reason_of
from balancer.files import atomic_path, check_writable, check_writable_folder, read_arrays, read_json, write_arrays, write_json, write_text


def test_arrays_and_meta_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3)[:, ::-1], "b": np.array(2.5, np.float32), "empty": np.zeros((0, 4))}
    write_arrays(tmp_path / "x.safetensors", arrays, {"n": [1, 0.1]})
    back, meta = read_arrays(tmp_path / "x.safetensors", what="a test")
    assert meta == {"n": [1, 0.1]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"{}", b"not safetensors at all, but longer than a header"])
def test_foreign_or_torn_arrays_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_arrays(tmp_path / "x.safetensors", what="a test")


def test_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.safetensors is missing: a test"):
        read_arrays(tmp_path / "y.safetensors", what="a test")
    with pytest.raises(InputError, match=r"y\.json is missing: a test"):
        read_json(tmp_path / "y.json", what="a test")


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are a POSIX matter")
def test_a_full_disk_is_one_clear_error_and_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    script = (
        "import resource, signal, sys; from pathlib import Path; from balancer.files import write_bytes; from balancer.errors import InputError, reason_of\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_bytes(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "x.bin" in done.stdout and "free some space" in done.stdout
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "permission denied"),
        (OSError("odd"), "odd"),
        (KeyError("balancer"), "it has no key 'balancer'"),
        (ValueError("first line:\nsecond line"), "first line"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_reason_is_one_line_without_numbers_and_paths(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_outputs_are_checked_without_leaving_anything(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    check_writable(tmp_path / "old.json", "--json")
    check_writable(tmp_path / "new.json", "--json")
    check_writable_folder(tmp_path, "--out")
    check_writable_folder(tmp_path / "a" / "b", "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"
    with pytest.raises(InputError, match=r"--json .* is a folder: name a file"):
        check_writable(tmp_path, "--json")
    with pytest.raises(InputError, match=r"--json .*: the folder .*no does not exist; make it first"):
        check_writable(tmp_path / "no" / "new.json", "--json")
    with pytest.raises(InputError, match=r"--json .* can't be written \(File name too long\): choose another"):
        check_writable(tmp_path / ("n" * 300), "--json")
    with pytest.raises(InputError, match=r"--out .* can't be made, .*old.json is a file: name another folder"):
        check_writable_folder(tmp_path / "old.json" / "a", "--out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_a_read_only_place_is_named() -> None:
    with pytest.raises(InputError, match=r"--json /proc/x.json can't be written \(.*\): choose another folder"):
        check_writable(Path("/proc/x.json"), "--json")
    with pytest.raises(InputError, match=r"--out /proc can't be written"):
        check_writable_folder(Path("/proc"), "--out")
    with pytest.raises(InputError, match=r"--out /proc/x/y can't be made"):
        check_writable_folder(Path("/proc/x/y"), "--out")
