package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	succeed(t, "sed 's|/usr/bin|"+root+"/usr/bin|' "+root+"/usr/lib/systemd/system/caddy.service >"+unit)
	wantHardened(t, unit)
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

// The RPM package has the same files. Its config survives an upgrade and the removal.
func TestLongRPMPackage(t *testing.T) {
	root, packages := t.TempDir(), t.TempDir()
	for _, version := range []string{"0.1.0", "0.2.0"} {
		succeed(t, "make -C .. rpm VERSION="+version+" && mv ../dist/caddy-signed-playback-"+version+"-1.*.rpm "+packages+"/"+version+".rpm")
	}
	rpm := func(args string) string { return succeed(t, "rpm --root "+root+" --noscripts --nodeps "+args) }
	if diff := cmp.Diff("/etc/caddy/Caddyfile\n", succeed(t, "rpm -qp --configfiles "+packages+"/0.1.0.rpm")); diff != "" {
		t.Errorf("config files of the RPM package (-want +got):\n%s", diff)
	}
	rpm("-i " + packages + "/0.1.0.rpm")
	caddyfile := filepath.Join(root, "etc/caddy/Caddyfile")
	writeFile(t, caddyfile, append(must(os.ReadFile(caddyfile))(t), "# mine\n"...))
	rpm("-U " + packages + "/0.2.0.rpm")
	if !strings.Contains(readText(t, caddyfile), "# mine") {
		t.Error("the upgrade has replaced the config")
	}
	succeed(t, root+"/usr/bin/caddy signed-playback version && test -e "+root+"/usr/share/caddy-signed-playback/hls.min.js")
	rpm("-e caddy-signed-playback")
	if got := readText(t, caddyfile+".rpmsave"); !strings.Contains(got, "# mine") || exists(root+"/usr/bin/caddy") {
		t.Errorf("the removal leaves the program or not the config: %s", got)
	}
}

// The drop-in makes the unit of Caddy's own package as strict as the unit of ours.
func TestDropInForTheUnitOfCaddy(t *testing.T) {
	t.Parallel()
	unit := filepath.Join(t.TempDir(), "caddy.service")
	writeFile(t, unit, []byte("[Unit]\nDescription=Caddy\n[Service]\nType=notify\nUser=caddy\nGroup=caddy\nExecStart="+must(filepath.Abs(binary(t)))(t)+
		" run --environ --config /etc/caddy/Caddyfile\nTimeoutStopSec=5s\nPrivateTmp=true\nProtectSystem=full\nAmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE\n[Install]\nWantedBy=multi-user.target\n"))
	succeed(t, "../packaging/drop-in "+unit+".d/signed-playback.conf")
	wantHardened(t, unit)
}

// wantHardened checks that systemd accepts a unit, and finds at most 2.0 to say against it.
func wantHardened(t *testing.T, unit string) {
	t.Helper()
	succeed(t, "systemd-analyze verify "+unit+" && systemd-analyze security --offline=true --threshold=20 "+unit)
}

// The image plays a signed video without root, with a file system that nobody can write to. What
// it keeps in /data, such as the key that signs, is there for the next container.
func TestLongImage(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	succeed(t, "make -C .. image VERSION=0.1.0 && mv ../dist/signed-playback_0.1.0_*.oci.tar "+archive)
	var image struct {
		Config struct {
			User        string
			Labels      map[string]string
			Healthcheck struct{ Test []string }
		}
	}
	must(0, json.Unmarshal([]byte(succeed(t, "skopeo inspect --config --raw oci-archive:"+archive)), &image))(t)
	for label, want := range map[string]string{"version": "0.1.0", "licenses": "Apache-2.0", "source": "https://github.com/signed-playback/caddy-signed-playback"} {
		if got := image.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("the label %s is %q, want %q", label, got, want)
		}
	}

	o, media, api := startOrigin(t, exampleMedia()), freeAddr(t), freeAddr(t)
	caddyfile := filepath.Join(dir, "Caddyfile")
	must(0, os.WriteFile(caddyfile, []byte(fmt.Sprintf("{\n\tadmin unix//data/admin.sock\n\tlog {\n\t\tformat signed_playback\n\t}\n}\n\n"+
		"http://%s {\n\tsigned_playback {\n\t\tplayer /usr/share/caddy-signed-playback/hls.min.js\n\t}\n\tsigned_playback_cache {\n\t\tdisk /data/media 64MiB\n\t}\n\treverse_proxy %s\n}\n\n"+
		"http://%s {\n\tsigned_playback_api {\n\t\tbearer_token %s\n\t}\n}\n", media, o.addr(), api, apiSecret)), 0o644))(t) // the container's user reads it
	program := "podman --root " + dir + "/root --runroot " + dir + "/run --storage-driver=vfs --runtime runc "
	podman := func(args string) string { return succeed(t, program+args) }
	t.Cleanup(func() { _ = exec.Command("sh", "-c", program+"rm --force --all --time 0").Run() })
	podman("load --quiet --input " + archive)
	run := func() {
		podman("run --detach --name gateway --read-only --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --network=host" +
			" --volume " + caddyfile + ":/etc/caddy/Caddyfile:ro --volume data:/data --volume config:/config localhost/signed-playback:0.1.0")
		eventually(t, "the container listens", func() bool { return listens(media) && listens(api) })
	}
	run()
	first := mintAt(t, api, apiSecret)
	wantDecoded(t, "http://"+media+"/"+first+"/manifest/video.m3u8", 4)
	if test := image.Config.Healthcheck.Test; len(test) < 2 || test[0] != "CMD" {
		t.Errorf("the health check of the image is %q", test)
	} else {
		podman("exec gateway " + strings.Join(test[1:], " "))
	}
	if got := podman("top gateway huser"); strings.Contains(got, "root") {
		t.Errorf("the container runs as root: %s", got)
	}
	for path, writable := range map[string]bool{"/data/": true, "/config/": true, "/": false, "/etc/caddy/": false, "/usr/bin/": false} {
		keygen := "exec gateway /usr/bin/caddy signed-playback keygen -o " + path + "key.json --public " + path + "public.json"
		if got := execute(t, "", "", "sh", "-c", program+keygen); (got.code == 0) != writable {
			t.Errorf("writing below %s: exit status %d: %s", path, got.code, got.stderr)
		}
	}
	files := must(filepath.EvalSymlinks(strings.TrimSpace(podman("mount gateway"))))(t)
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "usr/share/caddy-signed-playback/hls.js-LICENSE", "usr/share/doc/caddy-signed-playback/copyright"} {
		if !exists(filepath.Join(files, name)) {
			t.Errorf("the image has no /%s", name)
		}
	}
	if loose := succeed(t, "find "+files+" -xdev ! -path '*/data*' ! -path '*/config*' ! -type l \\( ! -user 0 -o -perm /6022 \\)"); loose != "" {
		t.Errorf("files of the image that its user owns or can write to, or that change the user:\n%s", loose)
	}

	podman("stop --time 60 gateway")
	if code := strings.TrimSpace(podman("inspect --format {{.State.ExitCode}} gateway")); code != "0" {
		t.Errorf("the container ends with exit status %s", code)
	}
	podman("rm gateway")
	run()
	wantDecoded(t, "http://"+media+"/"+first+"/manifest/video.m3u8", 4)
	podman("kill gateway && " + program + "start gateway")
	eventually(t, "the container comes back after a kill", func() bool { return listens(media) })
}

// mintAt has the control API at an address make a token for the video demo.
func mintAt(t *testing.T, api, secret string) string {
	t.Helper()
	var minted struct{ Result struct{ Token string } }
	answer := send(t, client, http.MethodPost, "http://"+api+"/client/v4/accounts/any/stream/demo/token", "", "Authorization: Bearer "+secret)
	if err := json.Unmarshal(answer.body, &minted); err != nil || minted.Result.Token == "" {
		t.Fatalf("the control API makes no token: %v: %d %s", err, answer.StatusCode, answer.body)
	}
	return minted.Result.Token
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
