"""Repeats what it is told. Serve it with `fasthook run examples.echo:handler`."""

from fasthook import Update


async def handler(update: Update):
    if update.kind == "message" and "text" in update["message"]:
        print(f"chat {update.chat_id} said: {update['message']['text']}", flush=True)
        return update.reply("sendMessage", text=update["message"]["text"])
    return None
