package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// check starts each setup, sees that it serves what it should, and, if it has a
// gate, that the gate is one. It is stopped again: what is measured has never
// seen a forged token.
func (b *bench) check(ctx context.Context) error {
	for _, s := range b.setups {
		progress("checking %s", s.title)
		srv, err := b.start(ctx, s)
		if err != nil {
			return err
		}
		if err := errors.Join(b.checkSetup(ctx, s, srv), srv.stop()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) checkSetup(ctx context.Context, s *setup, srv *server) error {
	attempts, err := b.attempts(s)
	if err != nil {
		return err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	for _, a := range attempts {
		status, body, err := get(ctx, client, "http://"+srv.addr()+a.path, a.header)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %s: %w\n%s", s.title, a.what, err, srv.log)
		case a.want != nil && (status != http.StatusOK || !bytes.Equal(body, a.want)):
			return fmt.Errorf("%s: %s: status %d and %d bytes: want 200 and the object\n%s", s.title, a.what, status, len(body), srv.log)
		case a.want == nil && status != http.StatusUnauthorized && status != http.StatusForbidden:
			return fmt.Errorf("%s: %s: status %d: want 401 or 403\n%s", s.title, a.what, status, srv.log)
		case a.want == nil && bytes.Contains(body, b.media[video][0].data[:64]):
			return fmt.Errorf("%s: %s: it is refused and served all the same", s.title, a.what)
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string, header map[string]string) (status int, body []byte, err error) {
	const timeout = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody) //nolint:gosec // a server started here
	if err != nil {
		return 0, nil, err
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	response, err := client.Do(r) //nolint:gosec // as above
	if err != nil {
		return 0, nil, errors.New(strings.ReplaceAll(err.Error(), url, "the URL"))
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

// attempt is a request of which it is known what must become of it.
type attempt struct {
	what   string
	path   string
	header map[string]string
	want   []byte // nil: a refusal
}

func (b *bench) attempts(s *setup) ([]attempt, error) {
	var attempts []attempt
	if s.form == nil {
		for _, m := range b.media[video] {
			attempts = append(attempts, attempt{"without a token", "/" + video + "/" + m.file, nil, m.data})
		}
		return attempts, nil
	}
	for i, compact := range b.warm[s] {
		m := b.media[video][i%len(b.media[video])]
		attempts = append(attempts, attempt{"a good token", s.form.path(compact, video, m.file), s.header, m.data})
	}
	if s.open {
		return attempts, nil
	}
	refused, err := b.refusedTokens(s)
	if err != nil {
		return nil, err
	}
	m := b.media[video][0]
	for what, compact := range refused {
		attempts = append(attempts, attempt{what, s.form.path(compact, video, m.file), s.header, nil})
	}
	return append(attempts, b.attemptsBeside(s)...), nil
}

// refusedTokens are tokens that must not open anything, by what they are.
func (b *bench) refusedTokens(s *setup) (map[string]string, error) {
	inAnHour, anHourAgo := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	stranger, err := newSigner()
	if err != nil {
		return nil, err
	}
	good := b.warm[s][0]
	tokens := make(map[string]string)
	for _, t := range []struct {
		what string
		by   *signer
		grant
	}{
		{"an expired token", b.signer, grant{video, anHourAgo, s.rulesOf(0)}},
		{"a token of a stranger under our key id", stranger, grant{video, inAnHour, s.rulesOf(0)}},
	} {
		if tokens[t.what], err = s.form.sign(t.by, t.grant); err != nil {
			return nil, err
		}
	}
	tokens["the date of another token under a good signature"] = transplanted(b.warm[s][1], good)
	tokens["a token that says it has no signature"] = unsigned(good)
	if s.rules != "" {
		tokens["a token for viewers of another country"], err = s.form.sign(b.signer, grant{video, inAnHour, gbRules})
	}
	return tokens, err
}

// attemptsBeside are those that are not about the token itself.
func (b *bench) attemptsBeside(s *setup) []attempt {
	m, other := b.media[video][0], b.media[otherVideo][0]
	attempts := []attempt{{"no token", "/" + video + "/" + m.file, s.header, nil}}
	if s.form == ours {
		// The path of the request does not name the video: the token does.
		attempts = append(attempts, attempt{"a token for another video", s.form.path(b.other[s], video, m.file), s.header, other.data})
	} else {
		attempts = append(attempts, attempt{"a token for another video", s.form.path(b.other[s], video, m.file), s.header, nil})
	}
	if s.header != nil {
		compact := b.warm[s][0]
		attempts = append(attempts,
			attempt{"no origin", s.form.path(compact, video, m.file), nil, nil},
			attempt{"an origin that is not allowed", s.form.path(compact, video, m.file), map[string]string{"Origin": "https://example.net"}, nil})
	}
	return attempts
}

// counters are what Caddy says of itself in lines of "name value".
func (s *server) counters(ctx context.Context, names ...string) (map[string]int64, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	status, body, err := get(ctx, client, "http://"+s.metrics+"/metrics", nil)
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("reading counters: status %d, %w", status, err)
	}
	found := make(map[string]int64)
	for line := range strings.Lines(string(body)) {
		for _, name := range names {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					return nil, err
				}
				found[name] = int64(number)
			}
		}
	}
	for _, name := range names {
		if _, ok := found[name]; !ok {
			return nil, fmt.Errorf("there is no counter %s", name)
		}
	}
	return found, nil
}
