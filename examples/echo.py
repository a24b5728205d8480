"""Repeats what it is told. Serve it with `fasthook run examples.echo:handler`."""

from fasthook import Update


async def handler(update: Update):
    if update.kind != "message" or "text" not in update["message"]:
        return None
    print(f"chat {update.chat_id} said: {update['message']['text']}", flush=True)
    if not update.bot_id:
        return None  # no token: nobody to answer as
    return update.reply("sendMessage", text=update["message"]["text"])
