package integration

import (
	"path/filepath"
	"regexp"
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
