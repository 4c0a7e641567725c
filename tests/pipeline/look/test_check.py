"""What `check` says of the machine at hand."""

from pathlib import Path

import pytest

from stillhouse.pipeline.look import check


@pytest.mark.parametrize(
    ("flags", "dtype", "is_slow"),
    [
        ("fma avx avx2", "bfloat16", True),
        ("fma avx avx2", "float16", True),
        ("fma avx avx2", "float32", False),
        ("fma avx2 avx512f avx512_bf16", "bfloat16", False),
    ],
)
def test_dtype_that_is_slow_here_is_named(
    flags: str, dtype: str, is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "glob", lambda pattern: [])
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name: x\nflags\t\t: {flags}\n")
    note = check.slow_dtype(dtype, cpuinfo)
    assert (note is not None) == is_slow
    assert note is None or note.startswith("teacher.dtype: ")
    assert check.slow_dtype(dtype, tmp_path / "not Linux") is None
    monkeypatch.setattr(check, "glob", lambda pattern: ["/dev/nvidia0"])
    assert check.slow_dtype(dtype, cpuinfo) is None
