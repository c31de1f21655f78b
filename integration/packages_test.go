package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The Debian package is installed on a bare Debian, plays a signed video as its service
// does, is upgraded and removed. Keys and settings stay until it is purged.
func TestLongDebianPackage(t *testing.T) {
	root := t.TempDir()
	succeed(t, "debootstrap --variant=minbase bookworm "+root)
	for _, version := range []string{"0.1.0", "0.2.0"} {
		succeed(t, "make -C .. deb VERSION="+version+" && mv ../dist/caddy-signed-playback_"+version+"_*.deb "+root+"/"+version+".deb")
	}
	inside := func(script string) string { return succeed(t, "chroot "+root+" sh -ec '"+script+"'") }
	inside("dpkg -i /0.1.0.deb")
	unit := filepath.Join(t.TempDir(), "caddy.service") // verify looks for its programs
	succeed(t, "sed 's|/usr/bin|"+root+"/usr/bin|' "+root+"/usr/lib/systemd/system/caddy.service >"+unit+
		" && systemd-analyze verify "+unit+" && systemd-analyze security --offline=true --threshold=20 "+unit)
	if help := inside("caddy signed-playback version && zcat /usr/share/man/man8/caddy-signed-playback-doctor.8.gz && bash -ec \". /usr/share/bash-completion/completions/caddy\""); !strings.Contains(help, "--accept") {
		t.Errorf("the man page of doctor does not name its flags: %s", help)
	}

	// The folders that systemd makes for the service.
	inside("install -d -o caddy -g caddy -m 700 /run/caddy /var/lib/caddy /var/cache/caddy")
	addr := freeAddr(t)
	site := fmt.Sprintf("\nhttp://%s {\nsigned_playback {\nplayer /usr/share/caddy-signed-playback/hls.min.js\n}\nsigned_playback_cache {\ndisk /var/cache/caddy/media 64MiB\n}\n"+
		"header Content-Type application/vnd.apple.mpegurl\nrespond \"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXT-X-ENDLIST\n\"\n}\n", addr)
	caddyfile := filepath.Join(root, "etc/caddy/Caddyfile")
	config := bytes.Replace(must(os.ReadFile(caddyfile))(t), []byte("# key_file"), []byte("key_file"), 1)
	writeFile(t, caddyfile, append(config, site...))
	inside("caddy signed-playback keygen -o /key.json --public /etc/caddy/public.json && chmod 644 /etc/caddy/public.json")
	service := exec.Command("chroot", "--userspec=caddy:caddy", root, "caddy", "run", "--config", "/etc/caddy/Caddyfile")
	service.Env = []string{"PATH=/usr/bin:/bin", "HOME=/var/lib/caddy", "XDG_DATA_HOME=/var/lib", "XDG_CONFIG_HOME=/var/lib/caddy/config"}
	must(0, service.Start())(t)
	t.Cleanup(func() { _ = service.Process.Kill(); _ = service.Wait() })
	address := strings.TrimSpace(inside("caddy signed-playback sign --key /key.json --sub demo --url http://" + addr))
	eventually(t, "the packaged service plays", func() bool {
		response, err := http.Get(address)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	succeed(t, "chroot --userspec=caddy:caddy "+root+" sh -ec 'caddy reload --config /etc/caddy/Caddyfile --force && caddy signed-playback health --config /etc/caddy/Caddyfile'")
	inside("caddy signed-playback doctor --config /etc/caddy/Caddyfile --url " + address)

	inside("dpkg -i /0.2.0.deb")
	if !bytes.Contains(must(os.ReadFile(caddyfile))(t), []byte(addr)) {
		t.Error("the upgrade has replaced the config")
	}
	inside("dpkg -r caddy-signed-playback && ! command -v caddy && test -e /etc/caddy/Caddyfile && test -d /var/lib/caddy")
	inside("dpkg -P caddy-signed-playback && ! test -e /etc/caddy/Caddyfile && ! test -d /var/lib/caddy && ! test -d /var/cache/caddy")
}

// succeed returns the output of a script that must succeed, however long it takes.
func succeed(t testing.TB, script string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, stdout, &stderr)
	}
	return string(stdout)
}
