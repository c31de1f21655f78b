# A Django site with views.py: prints what a visitor and what the user 7 get.
import os
import sys

import django
from django.conf import settings

sys.path.insert(0, os.getcwd())
settings.configure(
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF="urls",
    SECRET_KEY="of this test",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    SIGNED_PLAYBACK_KEY_FILE="key.json",
    SIGNED_PLAYBACK_URL="https://media.example.com",
)
with open("urls.py", "w") as urls:
    urls.write("import views\nfrom django.urls import path\nurlpatterns = [path('playback/<slug:video>', views.playback)]\n")
django.setup()
from django.contrib.auth.models import User  # needs the settings
from django.core.management import call_command
from django.test import Client

call_command("migrate", verbosity=0)
client = Client()
print("visitor:", client.get("/playback/demo").status_code)
client.force_login(User.objects.create_user("ann", id=7))
answer = client.get("/playback/demo")
print("user:", answer["Cache-Control"], answer.json()["url"])
