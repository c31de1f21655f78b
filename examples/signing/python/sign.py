# With PyJWT: pip install "pyjwt[crypto]", or apt-get install python3-jwt python3-cryptography
# Run it beside key.json: python3 sign.py <video> <viewer>
import base64
import json
import sys
import time

import jwt

with open("key.json") as file:
    key = json.load(file)

video, viewer = sys.argv[1:]
now = int(time.time())
token = jwt.encode(
    {"sub": video, "uid": viewer, "iat": now, "exp": now + 12 * 60 * 60},
    base64.b64decode(key["pem"]),
    algorithm="RS256",
    headers={"kid": key["id"]},
)
print(f"https://media.example.com/{token}/manifest/video.m3u8")
