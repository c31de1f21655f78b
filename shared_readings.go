package signedplayback

import "sync"

// videoReading is what the store has said of a video. But for users it is
// immutable.
type videoReading struct {
	video  *storedVideo // nil if the store knows nothing
	damage error        // then video is nil
	shared bool         // by all videos of the same content
	users  int32        // entries of the cache; guarded by sharedReadings.mu
}

// weight estimates the memory that the reading takes, in bytes.
func (r *videoReading) weight() int {
	const ofReading, ofVideo, ofDamage = 32, 40, 128
	weight := ofReading
	if r.video != nil {
		weight += ofVideo + r.video.allowed.weight()
	}
	if r.damage != nil {
		weight += ofDamage
	}
	return weight
}

// sharedReadings has videos of the same settings share the memory of them, for
// most videos of an installation have the same. What is shared is not weighed,
// so there is little of it: 3 MiB at the most.
type sharedReadings struct {
	mu sync.Mutex // held under the cache's locks, so the cache must not be called with it
	of map[videoContent]*videoReading
}

const (
	maxSharedReadings = 4096
	maxSharedWeight   = 512
)

// videoContent is all of a storedVideo. Settings that are not the same in every
// part of it are never shared: a video must not be open to the sites of another.
type videoContent struct {
	known      bool
	privateSet bool
	private    bool
	originsSet bool
	origins    string // allowedOrigins.text, of which the rest is made
}

func (v *storedVideo) content() videoContent {
	if v == nil {
		return videoContent{}
	}
	c := videoContent{known: true, originsSet: v.originsSet}
	if v.requireSignedURLs != nil {
		c.privateSet, c.private = true, *v.requireSignedURLs
	}
	if v.allowed != nil {
		c.origins = v.allowed.text
	}
	return c
}

// use returns the reading that an entry of the cache is to hold, which says the
// same as r. Each call must be matched by release, when the entry is gone.
func (s *sharedReadings) use(r *videoReading) *videoReading {
	if r.damage != nil || r.weight() > maxSharedWeight {
		return r
	}
	content := r.video.content()
	s.mu.Lock()
	defer s.mu.Unlock()
	same, ok := s.of[content]
	switch {
	case ok:
		r = same
	case len(s.of) < maxSharedReadings:
		r.shared = true
		s.of[content] = r
	default:
		return r
	}
	r.users++
	return r
}

func (s *sharedReadings) release(r *videoReading) {
	if !r.shared {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.users--; r.users == 0 {
		delete(s.of, r.video.content())
	}
}
