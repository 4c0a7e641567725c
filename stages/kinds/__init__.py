"""What kind of prompt a prompt is: its language, whether it holds code, how long it is, its task and its topic.

The stages screen and balance use these rooms; they do not know each other's.
"""
