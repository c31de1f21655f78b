package integration

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The newest version of CHANGELOG.md is the one that compose.yaml and the page about installing
// name. The release has notes, and a version that CHANGELOG.md does not know cannot be released.
func TestVersionOfTheRelease(t *testing.T) {
	t.Parallel()
	newest := regexp.MustCompile(`(?m)^## \[(\d+\.\d+\.\d+(?:-[\w.]+)?)\] - \d{4}-\d\d-\d\d$`).FindStringSubmatch(readText(t, "../CHANGELOG.md"))
	if newest == nil {
		t.Fatal("CHANGELOG.md has no section with a version and a date")
	}
	for _, name := range []string{"compose.yaml", "docs/install.md"} {
		got := matches(readText(t, filepath.Join("..", name)), `ghcr\.io/signed-playback/signed-playback:(\S+)`)
		if diff := cmp.Diff(newest[1:], got); diff != "" {
			t.Errorf("versions of the image in %s (-CHANGELOG.md +%s):\n%s", name, name, diff)
		}
	}
	if notes := succeed(t, "../packaging/release-notes "+newest[1]); notes != succeed(t, "../packaging/release-notes") || strings.Contains(notes, "## [") {
		t.Errorf("the notes of the release are not its section: %.200s", notes)
	}
	for _, unknown := range []string{"999.0.0", newest[1] + "0", newest[1][1:]} {
		if got := execute(t, "..", "", "packaging/release-notes", unknown); got.code == 0 {
			t.Errorf("version %s can be released without notes: %.200s", unknown, got.stdout)
		}
	}
}

// Threat: who moves the tag of an action, or takes over its repository, runs code with the rights
// of a workflow. A commit cannot be moved. Nothing has rights that its job does not name.
func TestWorkflowsRunWhatWasReviewed(t *testing.T) {
	t.Parallel()
	workflows, err := filepath.Glob("../.github/workflows/*")
	if err != nil || len(workflows) == 0 {
		t.Fatal("there are no workflows: ", err)
	}
	pinned := regexp.MustCompile(`uses: [\w-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	minimal := regexp.MustCompile(`(?m)^permissions:(?: \{\}|\n  contents: read)\n(?:\S|\z)`)
	for _, workflow := range workflows {
		text := readText(t, workflow)
		for line := range strings.Lines(text) {
			if strings.Contains(line, "uses:") && !pinned.MatchString(strings.TrimSpace(line)) {
				t.Errorf("%s: an action without the commit and version: %s", workflow, line)
			}
		}
		if !minimal.MatchString(text) {
			t.Errorf("%s gives all jobs more than the right to read", workflow)
		}
		if got, want := strings.Count(text, "persist-credentials: false"), strings.Count(text, "actions/checkout@"); got != want {
			t.Errorf("%s leaves the token in %d of %d clones, where every later step finds it", workflow, want-got, want)
		}
	}
}

// Threat: who moves the tag of an image runs another program.
var pinnedImage = regexp.MustCompile(`^docker\.io/[\w/]+:v?\d[\w.-]*@sha256:[0-9a-f]{64}$`)

func TestBaseImagesArePinned(t *testing.T) {
	t.Parallel()
	images := matches(readText(t, "../packaging/Dockerfile"), `(?m)^FROM (?:--\S+ )*(\S+)`)
	if len(images) < 2 {
		t.Errorf("found only the images %q", images)
	}
	for _, image := range images {
		if image != "scratch" && !pinnedImage.MatchString(image) {
			t.Errorf("the image %s has no digest", image)
		}
	}
}

// A release that comes after a later one, as a fix for an older line does, is not the latest. Nor is
// one for a try, or one without a tag.
func TestLatestRelease(t *testing.T) {
	t.Parallel()
	program := must(filepath.Abs("../packaging/is-latest"))(t)
	for tags, latest := range map[string]string{
		"":                                 "",
		"v0.1.0":                           "0.1.0",
		"v0.2.0 v0.1.0 v0.1.1":             "0.2.0",
		"v0.9.0 v0.10.0 v0.9.10":           "0.10.0",
		"v1.0.0 v1.0.1-rc.1 v2.0.0-beta.1": "1.0.0",
		"v1.0.0 v2 v3.0 video-9.0.0 v9.0.0+x 9.0.0": "1.0.0",
	} {
		dir := t.TempDir()
		succeed(t, "cd "+dir+" && git init -q && git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m x; for tag in "+tags+"; do git tag $tag; done")
		for _, version := range append(strings.Fields(strings.ReplaceAll(tags, "v", "")), "0.0.1", "99.0.0") {
			if got := execute(t, dir, "", program, version); (got.code == 0) != (version == latest) {
				t.Errorf("with the tags %q, version %s ends with exit status %d: %s", tags, version, got.code, got.stderr)
			}
		}
	}
}

// A machine on which nobody has tested yet has the programs of every Debian, and those that
// install-tools.sh installs or names.
func TestToolsAreInstalled(t *testing.T) {
	t.Parallel()
	const always = "bash cd chroot find git go make prlimit sed sh"
	_, list, _ := strings.Cut(readText(t, "install-tools.sh"), "\ntools='")
	list, _, _ = strings.Cut(list, "'\n")
	installed := append(strings.Fields(always), matches("\n"+list, `\n(?:/\S+/)?(\S+) `)...)
	sources, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var used []string
	for _, source := range sources {
		used = append(used, matches(readText(t, source), `(?:tool\(t, |exec\.Command\(|exec\.CommandContext\([\w.()]+, |execute\(t, [^,]+, [^,]+, |succeed\(t, )"([\w/-]+)`)...)
	}
	for _, name := range used {
		if !strings.HasPrefix(name, "../") && !strings.HasPrefix(name, "packaging/") && !slices.Contains(installed, filepath.Base(name)) {
			t.Errorf("install-tools.sh does not see to %s", name)
		}
	}
	if len(used) < 20 {
		t.Errorf("found only the programs %q", used)
	}
}
