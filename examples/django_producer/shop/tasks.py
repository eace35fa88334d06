"""To the harvester and back."""

from typing import Any

from celery import current_app, shared_task
from django.conf import settings

from shop.models import Picture


def hand_in(task_ids: list[str]) -> None:
    """Send up to 1,000 ids in one message. Sending an id again changes nothing."""
    current_app.send_task(
        "harvester.submit",
        args=[task_ids],
        kwargs={"label": "shop", "reply_task": "shop.picture_ready", "reply_queue": "shop"},
        queue=settings.HARVESTER_QUEUE,
    )


@shared_task(name="shop.picture_ready", acks_late=True)
def picture_ready(record: dict[str, Any]) -> None:
    """The harvester's reply, with the record. It may come twice; a late one of an old run is not
    to undo a newer one."""
    Picture.objects.filter(task_id=record["task_id"], run__lte=record["run"]).update(
        state=record["state"],
        run=record["run"],
        files=[file["uri"] for file in record.get("files", []) if "uri" in file],
    )
