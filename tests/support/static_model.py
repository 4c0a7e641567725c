"""A real model2vec model, made of the teacher's embeddings by the library."""

from pathlib import Path

import numpy as np


def make_static_model(weights: Path, folder: Path) -> Path:
    """The teacher's embeddings in 64 dimensions (principal components without the first, which all tokens share), each
    token weighted by its rank as model2vec does."""
    from model2vec import StaticModel
    from safetensors import safe_open
    from tokenizers import Tokenizer

    with safe_open(weights / "model.safetensors", "pt") as file:
        vector_VD = file.get_tensor("model.embed_tokens.weight").float().numpy()
    centred_VD = vector_VD - vector_VD.mean(axis=0)
    _, directions_DD = np.linalg.eigh(centred_VD.T @ centred_VD)
    vector_VD = centred_VD @ directions_DD[:, ::-1][:, 1:65] * np.log(1 + np.arange(len(vector_VD)))[:, None]
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    StaticModel(np.ascontiguousarray(vector_VD), tokenizer, config={}, normalize=True).save_pretrained(folder)
    return folder
