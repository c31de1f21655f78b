"""GET /playback/demo answers {"url": ...} to a user who is logged in. In urls.py:

    path("playback/<slug:video>", views.playback)

and in settings.py, with the file that `caddy signed-playback keygen -o` writes:

    SIGNED_PLAYBACK_KEY_FILE = "/etc/playback/key.json"
    SIGNED_PLAYBACK_URL = "https://media.example.com"
"""
import base64, json, time
from pathlib import Path

import jwt  # PyJWT
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import JsonResponse
from django.views.decorators.cache import never_cache


@never_cache
@login_required
def playback(request, video):
    # If users may not watch all videos, check here that this user may watch this video.
    key = json.loads(Path(settings.SIGNED_PLAYBACK_KEY_FILE).read_text())
    now = int(time.time())
    claims = {"sub": video, "uid": str(request.user.pk), "iat": now, "exp": now + 12 * 60 * 60}
    token = jwt.encode(claims, base64.b64decode(key["pem"]), algorithm="RS256", headers={"kid": key["id"]})
    return JsonResponse({"url": f"{settings.SIGNED_PLAYBACK_URL}/{token}/manifest/video.m3u8"})
