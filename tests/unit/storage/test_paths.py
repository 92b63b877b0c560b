"""No name leads out of its folder, and a file is whole or absent."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError
from headrace.core.failpoints import armed
from headrace.storage.paths import inside, private_folder, write_atomically

PARTS = st.sampled_from(["a", "..", ".", "", "~", "C:", "\\", "\0", "\u2028", "é", ".git", "a" * 300])


@given(name=st.text(max_size=12) | st.lists(PARTS, max_size=4).map("/".join))
@example("a/../../b")
@example("/etc/passwd")
@example("a//b")
@example("a/")
def test_a_path_is_inside_or_refused(name: str) -> None:
    root = Path("/state")
    try:
        path = inside(root, name)
    except ConfigurationError:
        return
    assert os.path.normpath(path) == str(path) == f"/state/{name}"
    assert path != root


def test_plain_names_are_accepted() -> None:
    assert inside(Path("r"), "a-b_c.d/é 1").as_posix() == "r/a-b_c.d/é 1"


def test_a_symbolic_link_is_refused_anywhere_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("link", "link/file", "broken"):
        with pytest.raises(ConfigurationError, match="leave its folder"):
            inside(tmp_path / "root", name)


def test_folders_and_files_are_private(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")
    write_atomically(folder / "f", b"x", temporary=folder / "f.new", failpoint="t")
    assert [oct(path.stat().st_mode & 0o777) for path in (tmp_path / "a", folder, folder / "f")] == [
        "0o700",
        "0o700",
        "0o600",
    ]


@pytest.mark.parametrize(("point", "content"), [("t.before_rename", b"old"), ("t.after_rename", b"new" * 1000)])
def test_a_file_is_replaced_whole(tmp_path: Path, point: str, content: bytes) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")
    with armed(f"{point}:raise"), pytest.raises(OSError, match="failpoint"):
        write_atomically(target, b"new" * 1000, temporary=tmp_path / "f.new", failpoint="t")
    assert target.read_bytes() == content
