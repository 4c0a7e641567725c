"""Hidden GPUs are none, however they are hidden."""

import pytest

from stillhouse.stages.teacher import gpus


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("-1", []),
        ("none", []),
        ("NoDevFiles", []),
        ("0, 3", ["0", "3"]),
        ("1,-1,0", ["1"]),
        ("GPU-8932f937,MIG-7/1/0", ["GPU-8932f937", "MIG-7/1/0"]),
        (None, ["0", "1"]),
    ],
)
def test_gpus_are_those_that_cuda_takes(visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible_gpus() == names
