"""What a bot's own tests can use: sample updates as Telegram writes them."""
