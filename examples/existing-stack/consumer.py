"""Handles each event of the queue `shipping` once, however often it is delivered.

    AMQP_URL=amqp://guest:guest@localhost:5672/%2F SHIPPING_DB=shipping.db python3 consumer.py
"""

import json
import os
import sqlite3

import pika

# The table of handled events belongs to the database that the effect is written to: here SQLite, in your service its own.
db = sqlite3.connect(os.environ.get("SHIPPING_DB", "shipping.db"))
db.execute("create table if not exists handled (message_id text primary key, at text default current_timestamp)")
db.execute("create table if not exists shipments (order_id text, event text)")


def handle(channel, method, properties, body):
    try:
        event = json.loads(body)
        # One transaction for the id and the effect: after a crash there are both or neither, so a second delivery is
        # either nothing new or does what the first one did not.
        with db:
            new = db.execute("insert or ignore into handled (message_id) values (?)", (properties.message_id,)).rowcount
            if new:
                db.execute("insert into shipments values (?, ?)", (event["aggregateid"], event["type"]))
    except Exception as error:
        # Back into the queue: after the fourth time RabbitMQ moves it to shipping.dlq, and the others go on. Reject, not nack:
        # RabbitMQ 4.3 counts a nack with requeue as "not now" and not as a failure, so that it would come back for ever.
        print(f"failed {properties.message_id}: {error}", flush=True)
        channel.basic_reject(method.delivery_tag, requeue=True)
        return
    if new:
        print(f"handled {properties.message_id}: {event['type']} of {event['aggregatetype']} {event['aggregateid']}", flush=True)
    # Not before the commit: whatever dies before this line, the message comes again.
    channel.basic_ack(method.delivery_tag)


connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
# One at a time keeps the order of the queue, also when a message comes back.
channel.basic_qos(prefetch_count=1)
channel.basic_consume("shipping", handle)
try:
    channel.start_consuming()
except KeyboardInterrupt:
    connection.close()
