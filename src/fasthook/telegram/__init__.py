"""The Telegram side: the Bot API and what is known of it."""
