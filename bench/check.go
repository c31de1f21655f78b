package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// check starts each setup and verifies that it serves the objects and, if it
// looks at tokens, refuses bad ones. Then it stops the setup: the process that is
// measured has never met a forged token.
func (b *bench) check(ctx context.Context) error {
	for _, s := range b.setups {
		progress("checking %s", s.title)
		attempts, err := b.attempts(s)
		if err != nil {
			return err
		}
		srv, err := b.start(ctx, s)
		if err != nil {
			return err
		}
		for _, p := range protocols[:max(s.over, 1)] {
			if err = b.try(ctx, srv, p, attempts); err != nil {
				err = fmt.Errorf("%s: %w", p.title, err)
				break
			}
		}
		if err := errors.Join(err, srv.stop()); err != nil {
			return srv.explain(err)
		}
	}
	return nil
}

// attempt is a request with a known outcome.
type attempt struct {
	what   string
	path   string
	header map[string]string
	object []byte // nil if the request must be refused
}

func (b *bench) try(ctx context.Context, srv *server, p protocol, attempts []attempt) error {
	transport := &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 1, Protocols: new(http.Protocols),
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), VerifyConnection: wantCipher},
	}
	transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(b.certificate)
	transport.Protocols.SetHTTP1(!p.h2)
	transport.Protocols.SetHTTP2(p.h2)
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	for _, a := range attempts {
		status, body, err := get(ctx, client, srv.url(p)+a.path, a.header)
		switch {
		case err != nil && a.object == nil && p.tls:
			// This version of HAProxy breaks a connection with TLS off when a signature fails.
		case err != nil:
			return fmt.Errorf("%s: %w", a.what, err)
		case a.object != nil && (status != http.StatusOK || !bytes.Equal(body, a.object)):
			return fmt.Errorf("%s: status %d and %d bytes: want 200 and the object", a.what, status, len(body))
		case a.object == nil && status != http.StatusUnauthorized && status != http.StatusForbidden:
			return fmt.Errorf("%s: status %d: want 401 or 403", a.what, status)
		case a.object == nil && bytes.Contains(body, b.media[video][0].data[:64]):
			return fmt.Errorf("%s: the refusal contains the object", a.what)
		}
	}
	return nil
}

// wantCipher refuses a connection with another cipher than the bench requires of all
// servers: another cipher takes another time.
func wantCipher(state tls.ConnectionState) error {
	if state.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		return fmt.Errorf("the cipher is %s", tls.CipherSuiteName(state.CipherSuite))
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

func (b *bench) attempts(s *setup) ([]attempt, error) {
	var attempts []attempt
	objects := b.media[video]
	if s.form == nil {
		for _, o := range objects {
			attempts = append(attempts, attempt{"without a token", "/" + video + "/" + o.file, nil, o.data})
		}
		return attempts, nil
	}
	for i, compact := range b.warm[s] {
		o := objects[i%len(objects)]
		attempts = append(attempts, attempt{"a good token", s.form.path(compact, video, o.file), s.header, o.data})
	}
	if s.open {
		return attempts, nil
	}
	refused, err := b.refusedTokens(s)
	if err != nil {
		return nil, err
	}
	o, other := objects[0], b.media[otherVideo][0]
	for what, compact := range refused {
		attempts = append(attempts, attempt{what, s.form.path(compact, video, o.file), s.header, nil})
	}
	// Where the token alone names the video, a token for another video opens
	// that one.
	var opened []byte
	if s.form == ours {
		opened = other.data
	}
	attempts = append(attempts,
		attempt{"no token", "/" + video + "/" + o.file, s.header, nil},
		attempt{"a token for another video", s.form.path(b.other[s], video, o.file), s.header, opened})
	if s.header != nil {
		path := s.form.path(b.warm[s][0], video, o.file)
		attempts = append(attempts,
			attempt{"no Origin", path, nil, nil},
			attempt{"an Origin that is not allowed", path, map[string]string{"Origin": "https://example.net"}, nil})
	}
	return append(attempts, attempts[0]), nil // it still serves
}

// refusedTokens are tokens that must open nothing, by description.
func (b *bench) refusedTokens(s *setup) (map[string]string, error) {
	good, inAnHour := b.warm[s][0], time.Now().Add(time.Hour)
	tokens := map[string]string{
		"the payload of another token":                 transplanted(b.warm[s][1], good),
		"a token that claims to need no signature":     unsigned(good),
		"an expired token":                             "",
		"a token with the signature of an unknown key": "",
	}
	stranger, err := newSigner()
	if err != nil {
		return nil, err
	}
	var errs [3]error
	tokens["an expired token"], errs[0] = s.form.sign(b.signer, grant{video, time.Now().Add(-time.Hour), s.rules})
	tokens["a token with the signature of an unknown key"], errs[1] = s.form.sign(stranger, grant{video, inAnHour, s.rules})
	if s.rules != "" {
		tokens["a token for clients in another country"], errs[2] = s.form.sign(b.signer, grant{video, inAnHour, gbRules})
	}
	return tokens, errors.Join(errs[:]...)
}
