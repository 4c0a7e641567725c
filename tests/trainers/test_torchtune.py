"""torchtune 0.6.1: its reading of the JSONL."""

import datasets
from conftest import MADE, published
from torchtune.data import OpenAIToMessages


def test_messages_are_read_and_the_prompts_masked() -> None:
    files = sorted(str(file) for file in (MADE / "top_k/openai/data").glob("*.jsonl"))
    data = datasets.load_dataset("json", data_files=files, split="train")
    transform = OpenAIToMessages(train_on_input=False, column_map={"messages": "messages"})
    for row, source in zip(data, published(), strict=False):
        messages = transform(row)["messages"]
        assert [(message.role, message.text_content, message.masked) for message in messages] == [
            (message["role"], message["content"], message["role"] != "assistant") for message in source["messages"]
        ]
