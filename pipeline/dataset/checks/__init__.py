"""What `verify` looks at: `files` (bytes, footers, columns), `published` and `exported` (rows), `text` (messages
against ids), `alignment` (statistics), `together` (what only all files tell). They report to `findings`."""
