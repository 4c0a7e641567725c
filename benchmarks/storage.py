"""What each `targets` setting costs, in bytes per token on disk and in nats, on real targets of two teachers. No test.

    make data/gemma/.prepared                 # Gemma 3 270M, vocabulary 262,144; SmolLM2's is 49,152
    python benchmarks/storage.py collect      # generates and scores; minutes, once (data/storage)
    python benchmarks/storage.py sizes        # bytes and nats of every setting, and of DistillKit's layouts
    python benchmarks/storage.py gradient     # how far a student's gradient points from the full distribution's
    python benchmarks/storage.py loader       # tokens/s that one core decodes into a PyTorch DataLoader
    python benchmarks/storage.py plot FILE    # docs/targets.svg from what `sizes` printed (pip install matplotlib)

Results are JSON on stdout; docs/targets.md holds and reads them. DistillKit's quantised layouts are made by its own
code when a checkout of it (https://github.com/arcee-ai/DistillKit, a61c2e7d) is on PYTHONPATH, and left out otherwise.

Shape legend: S tokens, V vocabulary, K targets per token, D draws per token.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

from stillhouse.pipeline.folder import shard  # noqa: E402
from stillhouse.schemas import tables, targets  # noqa: E402
from stillhouse.schemas.config import Config, TargetsConfig  # noqa: E402

STORAGE = ROOT / "data/storage"
TEACHERS = {
    "SmolLM2-135M-Instruct": ROOT / "data/quickstart/SmolLM2-135M-Instruct",
    "gemma-3-270m": ROOT / "data/gemma/gemma-3-270m",
}
GEMMA_TEMPLATE = """{{ bos_token }}{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"""  # a base model
K_MOST, D_MOST = 256, 256


def collect(name: str, num_prompts: int, max_tokens: int) -> None:
    """Answers at temperature 1 with the top 256 and 256 draws of every token, and their full distributions by
    transformers; float32 throughout, so that what is measured is storage and not arithmetic."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.generation import first_turns
    from stillhouse.stages.teacher.chat import Chat
    from stillhouse.stages.teacher.engine import VLLMTeacher

    folder = TEACHERS[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = Chat(tokenizer, None if tokenizer.chat_template else GEMMA_TEMPLATE)
    texts = first_turns(chat, num_prompts, 128)
    config = Config.model_validate(
        {
            "run_dir": "unused",
            "source": {"path": "unused"},
            "teacher": {
                "model": str(folder),
                "dtype": "float32",
                "max_model_len": 512,
                "engine": {"enforce_eager": True, "max_num_seqs": 32},
                "env": {"VLLM_CPU_KVCACHE_SPACE": "2"},
            },
            "sampling": {"max_tokens": max_tokens, "temperature": 1.0},
            "targets": {"method": "both", "top_k": K_MOST, "num_draws": D_MOST, "probe_fraction": 0.0},
        }
    )
    teacher = VLLMTeacher(config, [tokenizer.eos_token_id])
    prompts = [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]

    async def answers() -> list[Any]:
        return await asyncio.gather(*(teacher.answer(p, str(i), 1000 + i, max_tokens) for i, p in enumerate(prompts)))

    try:
        answered = asyncio.run(answers())
    finally:
        teacher.shutdown()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = STORAGE / name
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, list[Any]] = {"ids": [], "logprobs": [], "draws": [], "tokens": []}
    full = np.lib.format.open_memmap(
        out / "full.npy", "w+", np.float16, (sum(len(a.token_ids) for a in answered), teacher.vocab_size)
    )
    done = 0
    for prompt, a in zip(prompts, answered, strict=True):
        ids = torch.tensor(np.concatenate([prompt, a.token_ids])[None].astype(np.int64))
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
        S = len(a.token_ids)
        full[done : done + S] = torch.log_softmax(logits, -1).numpy()[:, : teacher.vocab_size]
        done += S
        kept = {"ids": a.target_ids, "logprobs": a.target_logprobs, "draws": a.draws, "tokens": a.token_ids}
        for key, value in kept.items():
            arrays[key].append(value)
    full.flush()
    np.savez(
        out / "targets.npz",
        lengths=[len(a.token_ids) for a in answered],
        prompt_lengths=[len(p) for p in prompts],
        prompts=np.concatenate(prompts),
        **{key: np.concatenate(value) for key, value in arrays.items()},
    )
    print(f"{name}: {done} tokens of {len(answered)} answers", file=sys.stderr)


class Collected:
    """What `collect` kept of one teacher: S tokens of several answers."""

    def __init__(self, name: str) -> None:
        stored = np.load(STORAGE / name / "targets.npz")
        self.name = name
        self.ids_SK, self.logprobs_SK, self.draws_SD = stored["ids"], stored["logprobs"], stored["draws"]
        self.tokens_S, self.lengths, self.prompts = stored["tokens"], stored["lengths"], stored["prompts"]
        self.prompt_lengths = stored["prompt_lengths"]
        self.full_SV = np.load(STORAGE / name / "full.npy", mmap_mode="r")

    def answers(self) -> list[slice]:
        ends = np.cumsum(self.lengths)
        return [slice(end - length, end) for end, length in zip(ends.tolist(), self.lengths.tolist(), strict=True)]


def table_of(data: Collected, settings: TargetsConfig) -> pa.Table:
    """The columns that a run would store for these answers, one row each."""
    rows = []
    for span in data.answers():
        row: dict[str, Any] = {"num_draws": settings.num_draws, "target_precision": settings.precision}
        top_k = targets.encode_top_k(
            data.ids_SK[span, : settings.top_k],
            data.logprobs_SK[span, : settings.top_k],
            settings.top_p,
            settings.precision,
        )
        draws = targets.encode_draws(data.draws_SD[span, : settings.num_draws])
        row |= {f"target_{name}": value for name, value in top_k._asdict().items()}
        row |= {f"draw_{name}": value for name, value in draws._asdict().items()}
        rows.append(row)
    fields = tables.target_fields(settings)
    return pa.table([pa.array([row[f.name] for row in rows], f.type) for f in fields], schema=pa.schema(fields))


def bytes_per_token(table: pa.Table, num_tokens: int) -> float:
    """Of all columns of the Parquet file that a run would write, footer and other columns left out."""
    metadata = pq.read_metadata(pa.BufferReader(shard.encode(table)))
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    total = sum(group.column(c).total_compressed_size for group in groups for c in range(group.num_columns))
    return total / num_tokens


def kl(q_SK: np.ndarray, p_SK: np.ndarray) -> np.ndarray:
    """[S] KL(q || p) in nats; q is made to sum to 1."""
    q_SK = q_SK / q_SK.sum(axis=1, keepdims=True)
    return np.where(q_SK > 0, q_SK * (np.log(np.maximum(q_SK, 1e-300)) - np.log(np.maximum(p_SK, 1e-45))), 0).sum(
        axis=1
    )


def cost(data: Collected, settings: TargetsConfig) -> dict[str, Any]:
    """One setting: bytes per token, targets per token, and means over tokens of what storing loses, in nats."""
    table = table_of(data, settings)
    S = len(data.tokens_S)
    found: dict[str, Any] = {"bytes": round(bytes_per_token(table, S), 1)}
    rows = targets.decode(table)
    found["targets"] = round(sum((row.logprobs > -np.inf).sum() for row in rows) / S, 1)
    losses: dict[str, list[np.ndarray]] = {}
    for span, row in zip(data.answers(), rows, strict=True):
        q_SK = np.exp(row.logprobs.astype(np.float64))
        K = q_SK.shape[1]
        if settings.method == "top_k":
            exact_SK = np.exp(data.logprobs_SK[span, :K].astype(np.float64))
            p_SK = np.where(q_SK > 0, exact_SK, 0)
            rest_S = np.maximum(1 - p_SK.sum(axis=1), 1e-7)
            tail_S = np.exp(row.tail.astype(np.float64))
            losses.setdefault("rounding", []).append(kl(p_SK, q_SK / q_SK.sum(axis=1, keepdims=True)))
            losses.setdefault("without the tail", []).append(kl(q_SK, p_SK))
            losses.setdefault("with the tail", []).append(kl(np.c_[q_SK, tail_S], np.c_[p_SK, rest_S]))
        else:
            p_SK = np.exp(np.take_along_axis(data.full_SV[span], row.ids.astype(np.int64), axis=1).astype(np.float64))
            losses.setdefault("scatter of the draws", []).append(kl(q_SK, p_SK))
    return found | {name: float(f"{np.concatenate(values).mean():.3g}") for name, values in losses.items()}


def distillkit(data: Collected, K: int, **quantisation: Any) -> dict[str, Any]:
    """DistillKit's layouts of the same top K: raw, or quantised by its own code; zstd, dictionaries off, which is the
    smaller of what Parquet writers do by default."""
    import torch

    S, V = len(data.tokens_S), data.full_SV.shape[1]
    ids, logprobs = data.ids_SK[:, :K], data.logprobs_SK[:, :K]
    if quantisation:
        from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor

        compressor = LogprobCompressor(DistributionQuantizationConfig(d=V, k=K, residual_bins=[], **quantisation))
        packed = compressor.compress_from_sparse(torch.tensor(ids.astype(np.int64)), torch.tensor(logprobs))
        back = compressor.decompress_to_sparse(packed)[1].float().numpy()
        columns = {name: list(value.numpy().view(np.uint8)) for name, value in packed.items()}
        value_type = pa.uint8()
    else:
        columns, back = {"token_ids": list(ids.astype(np.int32)), "top_values": list(logprobs)}, logprobs
    arrays = {}
    for name, rows in columns.items():
        value_type = pa.array(rows[0]).type
        arrays[name] = pa.array([rows[span] for span in data.answers()], pa.list_(pa.list_(value_type)))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, compression="zstd", use_dictionary=False)
    metadata = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    total = sum(group.column(c).total_compressed_size for group in groups for c in range(group.num_columns))
    p_SK, q_SK = np.exp(logprobs.astype(np.float64)), np.exp(np.minimum(back.astype(np.float64), 0))
    rounding = kl(p_SK, q_SK / q_SK.sum(axis=1, keepdims=True)).mean()
    return {"bytes": round(total / S, 1), "targets": K, "rounding": float(f"{rounding:.3g}")}


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Every setting and every layout beside it, for each teacher."""
    found: dict[str, Any] = {}
    for name in TEACHERS:
        data = Collected(name)
        V = data.full_SV.shape[1]
        result: dict[str, Any] = {"tokens": len(data.tokens_S), "vocabulary": V}
        wanted: dict[str, dict[str, Any]] = {}
        for K in (16, 32, 50, 64, 128, 256):
            wanted[f"top_k {K}"] = {"top_k": K}
            wanted[f"top_k {K}, precision 1/64"] = {"top_k": K, "precision": 1 / 64}
        for steps in (256, 16, 8, 4):
            wanted[f"top_k 64, precision 1/{steps}"] = {"top_k": 64, "precision": 1 / steps}
        for top_p in (0.9, 0.95, 0.99, 0.999):
            wanted[f"top_k 256, top_p {top_p}, precision 1/64"] = {"top_k": 256, "top_p": top_p, "precision": 1 / 64}
        for D in (16, 32, 50, 64, 128, 256):
            wanted[f"sampled {D}"] = {"method": "sampled", "num_draws": D}
        for label, setting in wanted.items():
            result[label] = cost(data, TargetsConfig.model_validate(setting))
        for K in (50, 64, 128):
            result[f"DistillKit raw {K}"] = distillkit(data, K)
        try:
            few = {"exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"], "delta_encoding": False}
            many = {"exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"], "delta_encoding": False}
            for label, K, setting in (
                ("DistillKit quantised 50", 50, few | {"exact_k": 1}),
                ("DistillKit quantised 50, normalize_t", 50, few | {"exact_k": 1, "normalize_t": True}),
                ("DistillKit quantised 64, normalize_t", 64, many | {"exact_k": 16, "normalize_t": True}),
                ("DistillKit quantised 128", 128, many | {"exact_k": 16}),
                ("DistillKit quantised 128, normalize_t", 128, many | {"exact_k": 16, "normalize_t": True}),
            ):
                result[label] = distillkit(data, K, **setting)
        except ImportError:
            print("DistillKit is not on PYTHONPATH: its quantised layouts are left out", file=sys.stderr)
        found[name] = result
    return found


def student(name: str) -> tuple[Any, list[Any]]:
    """A student, which is the teacher `name` without its layers 10 to 19, and the parameters of its last four layers,
    which alone have gradients."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHERS[name], dtype=torch.float32).eval()
    model.model.layers = torch.nn.ModuleList([*model.model.layers[:10], *model.model.layers[20:]])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.requires_grad_(False)
    parameters = [p for layer in model.model.layers[-4:] for p in layer.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    return model, parameters


def log_predictions(model: Any, data: Collected, number: int) -> Any:
    """[S, V] log-probabilities that the student gives, at the tokens of answer `number`."""
    import torch

    start, span = int(data.prompt_lengths[:number].sum()), data.answers()[number]
    prompt = data.prompts[start : start + data.prompt_lengths[number]]
    ids = torch.tensor(np.concatenate([prompt, data.tokens_S[span]])[None].astype(np.int64))
    return torch.log_softmax(model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float(), -1)


def gradient(options: argparse.Namespace) -> dict[str, Any]:
    """Cosine and length of a student's gradient under each kind of target, against the full distribution's, over all
    answers together; the loss is KL(target || student)."""
    import torch

    data = Collected("SmolLM2-135M-Instruct")
    model, parameters = student(data.name)
    settings: dict[str, Any] = {"full": None}
    for K in (16, 20, 48, 64, 256):
        settings[f"top_k {K}"] = settings[f"top_k {K} and tail"] = TargetsConfig(top_k=K, precision=1 / 64)
    for D in (50, 64, 256):
        settings[f"sampled {D}"] = TargetsConfig(method="sampled", num_draws=D)
    decoded = {name: s and targets.decode(table_of(data, s)) for name, s in settings.items()}
    sums = {name: [torch.zeros_like(p) for p in parameters] for name in settings}
    for number, span in enumerate(data.answers()[: options.answers]):
        logq_SV = log_predictions(model, data, number)
        for name, rows in decoded.items():
            if rows is None:
                loss = -(torch.tensor(data.full_SV[span].astype(np.float32)).exp() * logq_SV).sum()
            else:
                row = rows[number]
                p_SK = torch.tensor(np.exp(row.logprobs.astype(np.float32)))
                logq_SK = logq_SV.gather(1, torch.tensor(row.ids.astype(np.int64)))
                if name.endswith("tail"):
                    rest_S = torch.log1p(-logq_SK.exp().sum(1).clamp(max=1 - 1e-6))
                    loss = -(p_SK * logq_SK).sum() - (torch.tensor(np.exp(row.tail.astype(np.float32))) * rest_S).sum()
                else:
                    loss = -(p_SK / p_SK.sum(1, keepdim=True) * logq_SK).sum()
            for total, g in zip(sums[name], torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                total += g
    flat = {name: torch.cat([g.ravel().double() for g in total]) for name, total in sums.items()}
    found = {}
    for name, g in flat.items():
        s = settings[name]
        cosine = float(torch.nn.functional.cosine_similarity(g, flat["full"], dim=0))
        found[name] = {
            "bytes": None if s is None else round(bytes_per_token(table_of(data, s), len(data.tokens_S)), 1),
            "angle_degrees": round(float(np.degrees(np.arccos(min(cosine, 1.0)))), 2),
            "length": round(float(g.norm() / flat["full"].norm()), 4),
            "difference": round(float((g - flat["full"]).norm() / flat["full"].norm()), 4),
        }
    return {"tokens": int(data.lengths[: options.answers].sum()), **found}


def loader(options: argparse.Namespace) -> dict[str, Any]:
    """tokens/s from shards on disk to tensors of a PyTorch `DataLoader`, one process, one thread; the best of three."""
    import tempfile
    import time

    import torch
    from torch.utils.data import DataLoader, IterableDataset

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    data = Collected("SmolLM2-135M-Instruct")

    class Shards(IterableDataset):  # type: ignore[type-arg]
        def __init__(self, folder: Path) -> None:
            self.files = sorted(folder.glob("*.parquet"))

        def __iter__(self) -> Any:
            for file in self.files:
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, use_threads=False)
                    for row in targets.decode(table):
                        # Copies: PyTorch wants memory that it may write to.
                        yield torch.tensor(row.ids), torch.tensor(row.logprobs), torch.tensor(row.tail)

    found = {}
    for name, settings in {
        "top_k 64": TargetsConfig(),
        "top_k 64, precision 1/64": TargetsConfig(precision=1 / 64),
        "top_k 256, top_p 0.95, precision 1/64": TargetsConfig(top_k=256, top_p=0.95, precision=1 / 64),
        "sampled 64": TargetsConfig(method="sampled"),
    }.items():
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder = Path(name_of_folder)
            table = table_of(data, settings)
            for number in range(4):
                (folder / f"{number}.parquet").write_bytes(shard.encode(pa.concat_tables([table] * 16)))
            best = 0.0
            for _ in range(3):
                started, num_tokens = time.perf_counter(), 0
                for ids, _logprobs, _tail in DataLoader(Shards(folder), batch_size=None):
                    num_tokens += len(ids)
                best = max(best, num_tokens / (time.perf_counter() - started))
            found[name] = {"tokens": num_tokens, "tokens_per_s": round(best)}
    return found


def plot(options: argparse.Namespace) -> dict[str, Any]:
    """Draws docs/targets.svg from the JSON that `sizes` printed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "stillhouse"  # the same file for the same figures
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    found = json.loads(Path(options.file).read_text())
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for panel, (name, result) in zip(panels, found.items(), strict=True):
        series = {
            "top_k, renormalised: a bias": ("top_k", "without the tail", "o-"),
            "top_k, rounding alone": ("top_k", "rounding", "s-"),
            "sampled: scatter, which averages out": ("sampled", "scatter of the draws", "^-"),
        }
        for label, (prefix, key, style) in series.items():
            chosen = [
                value for setting, value in result.items()
                if setting.startswith(prefix) and (prefix == "sampled" or setting.endswith("precision 1/64"))
                and "top_p" not in setting
            ]  # fmt: skip
            panel.plot([v["bytes"] for v in chosen], [max(v[key], 1e-7) for v in chosen], style, label=label)
        panel.set(
            xscale="log", yscale="log", xlabel="bytes per token", title=f"{name}, {result['vocabulary']:,} tokens"
        )
        panel.set_xticks([20, 50, 100, 200, 500], labels=["20", "50", "100", "200", "500"])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("KL(stored || teacher), nats")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs/targets.svg", metadata={"Date": None})
    return {"written": "docs/targets.svg"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "sizes", "gradient", "loader", "plot"])
    parser.add_argument("file", nargs="?", help="for plot: what sizes printed")
    parser.add_argument("--answers", type=int, default=64, help="answers to collect, or to take the gradient over")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    if options.what == "collect":
        for name in TEACHERS:
            collect(name, options.answers, options.max_tokens)
        return
    ways = {"sizes": sizes, "gradient": gradient, "loader": loader, "plot": plot}
    print(json.dumps(ways[options.what](options), indent=1))


if __name__ == "__main__":
    main()
