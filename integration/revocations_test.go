package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

var tokenRevoked = refusedFor("token_revoked")

// revoke makes a revocation for an hour, of a selector like `"uid":"ann"`, and returns its id.
func (g *gateway) revoke(t testing.TB, selector string) string {
	t.Helper()
	var made struct {
		ID string `json:"id"`
	}
	g.mustCall(t, http.MethodPost, "stream/revocations", fmt.Sprintf(`{%s,"expires":%d}`, selector, time.Now().Add(time.Hour).Unix()), &made)
	return made.ID
}

// The attack: a viewer goes on playing on another node, after a crash, while the store is
// away, or when an old backup of it is restored. A revocation is in force on its own node
// with the next request, soon on all others, and for good.
func TestRevocationInAFleet(t *testing.T) {
	t.Parallel()
	for _, many := range []int{0, 100_000} {
		t.Run(fmt.Sprintf("redis, %d revocations", many), func(t *testing.T) {
			t.Parallel()
			redis := startRedis(t)
			f := startFleet(t, config{app: redis.option(), quick: many > 0})
			testRevocations(t, f, many, func() {
				const hash = "{signed_playback}:revocations"
				for field := range strings.FieldsSeq(redis.do(t, "HKEYS", hash)) {
					if field != "#epoch" {
						redis.do(t, "HDEL", hash, field)
					}
				}
				redis.do(t, "HSET", "{signed_playback}:state", "revocations", "older")
			})
			revoked, playing := segment(mint(t, "demo", func(c *token.Claims) { c.Viewer = "eve" })), segment(mint(t, "demo", nil))
			f.nodes[0].revoke(t, `"uid":"eve"`)
			f.await(t, "before the outage", revoked, tokenRevoked)
			redis.do(t, "FLUSHALL")
			f.awaitLog(t, storeAway)
			f.wantEverywhere(t, "after FLUSHALL", revoked, tokenRevoked)
			f.wantEverywhere(t, "another viewer after FLUSHALL", playing, plays)
			redis.kill()
			f.wantEverywhere(t, "without redis", revoked, tokenRevoked)
		})
		t.Run(fmt.Sprintf("files, %d revocations", many), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			f := startFleet(t, config{global: sharedFolder(dir), quick: many > 0})
			testRevocations(t, f, many, func() {
				for _, element := range []string{"revocations", "stamps/revocations"} {
					noError(t, os.RemoveAll(filepath.Join(dir, "signed_playback", element)))
				}
			})
		})
	}
}

// testRevocations revokes on each node. loseThem takes all revocations out of the store, as
// the restore of a backup does.
func testRevocations(t *testing.T, f *fleet, many int, loseThem func()) {
	fillRevocations(t, f.nodes[0], many)
	path := func(viewer string) string {
		return segment(mint(t, "demo", func(c *token.Claims) { c.Viewer = viewer }))
	}
	var call, own, all []time.Duration
	for i := range 21 {
		g, viewer := f.nodes[i%len(f.nodes)], fmt.Sprint("viewer", i)
		mine := path(viewer)
		f.wantEverywhere(t, "before a revocation", mine, plays)
		begun := time.Now()
		id := g.revoke(t, fmt.Sprintf(`"uid":%q`, viewer))
		answered := time.Now()
		wantVerdict(t, g, mine, tokenRevoked)
		call, own = append(call, answered.Sub(begun)), append(own, time.Since(answered))
		f.await(t, "a revocation", mine, tokenRevoked)
		all = append(all, time.Since(answered))
		if i > 0 {
			continue
		}
		f.nodes[1].mustCall(t, http.MethodDelete, "stream/revocations/"+id, "", nil)
		f.await(t, "a revocation that is taken back", mine, plays)
	}
	t.Logf("%d revocations, medians of %d: the call takes %s; the next request is refused %s after its answer, on all nodes after %s, at most %s",
		many, len(call), median(call), median(own), median(all), slices.Max(all))
	killed := path("killed")
	f.wantEverywhere(t, "before the kill", killed, plays)
	f.nodes[0].revoke(t, `"uid":"killed"`)
	f.restart(t, 0)
	f.await(t, "after kill -9 of the node that has answered", killed, tokenRevoked)
	loseThem()
	f.await(t, "after an older backup is restored", killed, tokenRevoked)
	eventually(t, "a node writes them back", func() bool {
		return slices.ContainsFunc(f.nodes, func(g *gateway) bool { return strings.Contains(g.log.String(), "the store had lost revocations") })
	})
	f.restart(t, 2)
	f.await(t, "a node that starts after that", killed, tokenRevoked)
	f.wantEverywhere(t, "a revocation that was taken back", path("viewer0"), plays)
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2].Round(time.Millisecond / 10)
}

// fillRevocations makes revocations that no test asks about, in calls of 1,000.
func fillRevocations(t *testing.T, g *gateway, many int) {
	t.Helper()
	const room = 30 // for those that the test makes
	for made := 0; made < many-room; made += 1000 {
		var list strings.Builder
		for i := made; i < min(made+1000, many-room); i++ {
			fmt.Fprintf(&list, `,{"jti":"%032d","expires":%d}`, i, time.Now().Add(time.Hour).Unix())
		}
		g.mustCall(t, http.MethodPost, "stream/revocations", "["+list.String()[1:]+"]", nil)
	}
}
