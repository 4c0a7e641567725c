"""A student and its teacher, each in an engine of its own and one after the other, against forward passes of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.on_policy import in_process
from stillhouse.pipeline.dataset.verify import verify
from stillhouse.schemas.config import Config
from tests.support.command import read
from tests.support.data import TEACHER
from tests.support.forward import exact_model, forward
from tests.support.scoring import make_raw_score_config

ENGINE = {"enforce_eager": True, "max_num_seqs": 8}
NUM_LAYERS = 12


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The first layers of the teacher, as a trainer would leave a student."""
    model = exact_model()
    model.model.layers = model.model.layers[:NUM_LAYERS]
    model.config.num_hidden_layers = NUM_LAYERS
    model.config.layer_types = (getattr(model.config, "layer_types", None) or [])[:NUM_LAYERS] or None
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_log_probability_is_its_models(student: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    raw = make_raw_score_config(tmp_path)
    raw["source"]["limit"] = 8
    env = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    raw["teacher"] = {"model": str(TEACHER), "dtype": "float32", "max_model_len": 256, "engine": ENGINE, "env": env}
    raw["ingest"]["max_prompt_tokens"] = 128
    raw["rollout"] = {
        "model": str(student),
        "dtype": "float32",
        "engine": ENGINE,
        "env": env,
        "asked_top_k": 4,
        "sampling": {"n": 2, "max_tokens": 24, "seed": 3},
    }
    raw["targets"] = {"method": "both", "top_k": 8, "num_draws": 8}
    raw["review"] = {"loop_tokens": 1000, "max_dropped_fraction": 1.0}
    manifest = in_process.run(Config.model_validate(raw))  # each engine ends with its stage
    found = verify(raw["run_dir"], num_workers=1)
    assert (found["problems"], found["not_checked"]) == ([], [])
    assert manifest["rows"] >= 6
    models = {"student_logprobs": AutoModelForCausalLM.from_pretrained(student, dtype="float32").eval()}
    models["token_logprobs"] = exact_model()
    errors: dict[str, list[np.ndarray]] = {"student_logprobs": [], "token_logprobs": [], "asked": [], "shifted": []}
    for row in read(Path(raw["run_dir"]) / "dataset/data").to_pylist():
        for name, model in models.items():
            logprobs_SV, tokens_S = forward(row, model)
            own_S = logprobs_SV[np.arange(len(tokens_S)), tokens_S]
            errors[name].append(np.abs(np.array(row[name]) - own_S))
            if name == "student_logprobs":
                errors["shifted"].append(np.abs(np.array(row[name])[:-1] - own_S[1:]))
                ids_SQ = np.array(row["asked_ids"]).reshape(len(tokens_S), 4)
                best_S = np.take_along_axis(logprobs_SV, ids_SQ, 1)[:, 0]
                assert np.allclose(best_S, logprobs_SV.max(1), atol=0.02)
            else:
                asked_SQ = np.take_along_axis(logprobs_SV, ids_SQ, 1)
                errors["asked"].append(np.abs(np.array(row["asked_logprobs"]) - asked_SQ.ravel()))
    means = {name: float(np.concatenate(values).mean()) for name, values in errors.items()}
    print(f"\n{manifest['rows']} answers, {manifest['target_tokens']} tokens: {means}")
    assert max(means["student_logprobs"], means["token_logprobs"], means["asked"]) < 0.005
    assert means["shifted"] > 20 * means["student_logprobs"]
