package signedplayback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/recordconn"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

func init() {
	caddy.RegisterModule(new(Cache))
	caddy.RegisterModule(new(ListenerWrapper))
}

// Cache keeps the origin's answers, one object for all viewers: each is
// asked for once, and viewers who come meanwhile read it as it arrives. It answers GET
// and HEAD as a shared cache (RFC 9111), and its place is between a gate and the handler
// that asks the origin. The gate decides on every request, and the cache never sees a
// token. It works without a gate too.
//
// The origin is told nothing of viewers: no header of theirs reaches it, so it cannot
// answer one viewer otherwise than others. Handlers after the cache see a request of
// the cache, and `vars` or `map` before the cache do not reach them. Requests with a
// header of `pass_request_headers` or with `Authorization` go past the cache.
//
// Responses carry `Cache-Status` (RFC 9211).
type Cache struct {
	// The memory for objects, in bytes, all overheads included. Default: 256 MiB, or
	// a quarter of the memory limit of the process if that is less. At least 1 MiB.
	Memory uint64 `json:"memory,omitempty"`

	// A second tier below the memory. Default: none.
	Disk *CacheDisk `json:"disk,omitempty"`

	// The size in bytes up to which objects are kept whole. Larger ones are kept in
	// slices of 1 MiB, if the origin answers ranges. Default: 64 MiB. At most half of
	// the memory.
	MaxObject uint64 `json:"max_object,omitempty"`

	// How long media is fresh if the origin does not say: everything but manifests
	// with a type of audio, video, images, fonts or captions, without a type, or with
	// a name of such. Default: 1h. 0s keeps none.
	SegmentTTL *caddy.Duration `json:"segment_ttl,omitempty"`

	// The same for manifests. Default: 1s.
	ManifestTTL *caddy.Duration `json:"manifest_ttl,omitempty"`

	// The same for the statuses 404 and 410. Default: 500ms.
	ErrorTTL *caddy.Duration `json:"error_ttl,omitempty"`

	// The query parameters that make another object. The others do not reach the
	// origin. Default: all but CMCD. Permitted: `v`, `_HLS_msn`. Not permitted: `v=1`.
	Query []string `json:"query,omitempty"`

	config   mediacache.Config
	cache    *mediacache.Cache
	poolKey  string
	diskPath string
	server   *caddyhttp.Server
	metrics  *metrics.Metrics
}

// CacheDisk is a folder with objects of a media cache, which outlive reloads and restarts.
// Several caches of one process may share it.
type CacheDisk struct {
	// The folder. Caddy creates it if it is missing, with mode 0700, and the files in it
	// with mode 0600. No other process may use it, and no other user may write to it.
	// Permitted: `/var/cache/media`. Not permitted: `cache`, a relative path.
	Path string `json:"path"`

	// How many bytes it may take, with the overheads of the file system. At least 16 MiB.
	Size uint64 `json:"size"`
}

const (
	defaultCacheMemory = 256 << 20
	minCacheMemory     = 1 << 20
	defaultMaxObject   = 64 << 20
)

// CaddyModule returns the Caddy module information.
func (*Cache) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.signed_playback_cache",
		New: func() caddy.Module { return new(Cache) },
	}
}

// Provision compiles the configuration and takes over the objects of the same site
// under the previous config.
func (c *Cache) Provision(ctx caddy.Context) error {
	module, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading app %s: %w", appID, err)
	}
	app := module.(*App)
	c.metrics = app.metrics
	if err := c.compile(); err != nil {
		return err
	}
	c.config.OriginFailed = func(err error) bool {
		answer, ok := errors.AsType[caddyhttp.HandlerError](err)
		return !ok || answer.StatusCode >= http.StatusInternalServerError
	}
	logger := ctx.Logger()
	c.config.Panicked = func(value any, stack []byte) {
		logger.Error("panic in a handler after the cache", zap.Any("error", redact.Panic(value)), zap.ByteString("stack", stack))
	}
	c.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	key, lasts, err := app.cacheKey(c.server)
	if err != nil {
		return err
	}
	c.server.RegisterConnContext(recordconn.WithConn)
	if err := c.provisionDisk(app, key, lasts, logger); err != nil {
		return err
	}
	c.poolKey = fmt.Sprintf("%s %d", key, c.config.Memory)
	pooled, _, err := mediaCachePool.LoadOrNew(c.poolKey, func() (caddy.Destructor, error) {
		return mediaCache{mediacache.New(c.config.Memory)}, nil
	})
	if err != nil {
		return err
	}
	c.cache = pooled.(mediaCache).Cache
	app.caches = append(app.caches, c)
	if len(app.caches) == 1 {
		return registerCacheGauges(ctx.GetMetricsRegistry(), app)
	}
	return nil
}

// provisionDisk takes over the disk of the previous config, or prepares one that the app
// opens when it starts: `caddy validate` must not disturb a running server.
func (c *Cache) provisionDisk(app *App, site string, lasts bool, logger *zap.Logger) error {
	if c.Disk == nil {
		return nil
	}
	path, err := c.Disk.check()
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return fmt.Errorf("disk %q: want a folder, and this is a file", path)
	}
	for _, other := range app.caches {
		if other.diskPath == path && other.Disk.Size != c.Disk.Size {
			return fmt.Errorf("disk %q: has the sizes %d and %d; give all caches that share it the same one", path, other.Disk.Size, c.Disk.Size)
		}
	}
	if !lasts {
		logger.Warn("objects of this media cache on the disk do not outlive the config: a cache of a server with named routes, or in an error route, begins without objects", zap.String("disk", path))
	}
	pooled, _, err := cacheDiskPool.LoadOrNew(path, func() (caddy.Destructor, error) {
		return cacheDisk{mediacache.NewDisk(path, func(message string, err error) { logger.Warn(message, zap.String("disk", path), zap.Error(err)) })}, nil
	})
	if err != nil {
		return err
	}
	c.diskPath, c.config.Disk, c.config.Site = path, pooled.(cacheDisk).Disk, site
	c.config.Disk.Use(int64(c.Disk.Size))
	return nil
}

func (d *CacheDisk) check() (path string, err error) {
	path = filepath.Clean(d.Path)
	if !filepath.IsAbs(path) || path == filepath.Dir(path) {
		return "", fmt.Errorf("disk %q: want the absolute path of a folder that only this cache uses, like /var/cache/media", d.Path)
	}
	if d.Size < mediacache.MinDisk || d.Size > math.MaxInt64 {
		return "", fmt.Errorf("disk %q: size %d: want at least 16 MiB, which is %d bytes", d.Path, d.Size, mediacache.MinDisk)
	}
	return path, nil
}

// cacheDiskPool keeps disks open over config reloads.
var cacheDiskPool = caddy.NewUsagePool()

type cacheDisk struct{ *mediacache.Disk }

// Destruct implements caddy.Destructor.
func (d cacheDisk) Destruct() error {
	d.Close()
	return nil
}

// mediaCachePool keeps objects over config reloads.
var mediaCachePool = caddy.NewUsagePool()

type mediaCache struct{ *mediacache.Cache }

// Destruct implements caddy.Destructor.
func (mediaCache) Destruct() error { return nil }

// Cleanup gives the objects up, unless another config uses them.
func (c *Cache) Cleanup() (err error) {
	if c.cache != nil {
		_, err = mediaCachePool.Delete(c.poolKey)
	}
	if c.config.Disk != nil {
		c.config.Disk.Release(int64(c.Disk.Size))
		_, diskErr := cacheDiskPool.Delete(c.diskPath)
		err = errors.Join(err, diskErr)
	}
	return err
}

func (c *Cache) compile() error {
	memory, maxObject := c.Memory, c.MaxObject
	if memory == 0 {
		memory = memoryWithin(debug.SetMemoryLimit(-1), minCacheMemory, defaultCacheMemory)
	}
	if memory < minCacheMemory {
		return fmt.Errorf("memory %d: want at least %d bytes", memory, minCacheMemory)
	}
	if maxObject == 0 {
		maxObject = min(defaultMaxObject, memory/2)
	}
	if maxObject > memory/2 {
		return fmt.Errorf("max_object %d: want at most half of the memory, which is %d bytes", maxObject, memory)
	}
	c.config = mediacache.Config{
		Memory: int64(memory), MaxObject: int64(maxObject), Query: c.Query,
		SegmentTTL: orDuration(c.SegmentTTL, time.Hour), ManifestTTL: orDuration(c.ManifestTTL, time.Second),
		ErrorTTL: orDuration(c.ErrorTTL, 500*time.Millisecond), Variant: variantOf, Context: originContext, Gather: recordconn.Gather,
		MemoryOnly: checkedHeader,
	}
	for _, name := range c.Query {
		if err := mediacache.CheckQuery(name); err != nil {
			return err
		}
	}
	return nil
}

func orDuration(d *caddy.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return time.Duration(*d)
}

// cacheKey returns the name under which a cache that is being provisioned outlives its
// config: the handlers of its site, and its place among the caches there. Other handlers
// may have another upstream, so a site whose handlers have changed begins without objects.
// lasts reports whether the next config can find that name again.
func (a *App) cacheKey(server *caddyhttp.Server) (key string, lasts bool, err error) {
	if server == nil {
		return "", false, errors.New("signed_playback_cache is a handler of an HTTP server")
	}
	site := rand.Text() // of named routes and error routes, nothing is kept
	for _, route := range server.Routes {
		if route.HandlersRaw != nil && len(server.NamedRoutes) == 0 { // it is being provisioned
			site, err = routecheck.Fingerprint(route.HandlersRaw, func(text string) string { return caddy.NewReplacer().ReplaceAll(text, "") })
			lasts = true
			break
		}
	}
	others := 0
	for _, c := range a.caches {
		if strings.HasPrefix(c.poolKey, site) {
			others++
		}
	}
	return fmt.Sprintf("%s %d", site, others), lasts, err
}

// cacheUsage returns how many objects all media caches have, and their memory.
func (a *App) cacheUsage() (objects int, bytes int64) {
	for _, c := range a.caches {
		n, size := c.cache.Usage()
		objects, bytes = objects+n, bytes+size
	}
	return objects, bytes
}

// diskUsage returns how many files the disks of media caches have, and their bytes.
func (a *App) diskUsage() (files int, bytes int64) {
	seen := map[*mediacache.Disk]bool{nil: true}
	for _, c := range a.caches {
		if !seen[c.config.Disk] {
			seen[c.config.Disk] = true
			n, size := c.config.Disk.Usage()
			files, bytes = files+n, bytes+size
		}
	}
	return files, bytes
}

// openDisks opens the disks of media caches.
func (a *App) openDisks() error {
	for _, c := range a.caches {
		if c.config.Disk != nil {
			if err := c.config.Disk.Open(); err != nil {
				return err
			}
		}
	}
	return nil
}

// pastCaches is the value of mediacache.GenerationHeader that sends a request past the next
// tier too.
var pastCaches = []string{"unknown"}

// ServeHTTP answers from memory, or asks the next handler on behalf of all viewers.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if trace, ok := r.Context().Value(traceKey{}).(*trace); ok {
		trace.explainCache(c, r)
		return next.ServeHTTP(w, r)
	}
	if d := decisionOf(r); d != nil && d.pastCache {
		c.metrics.CacheResults[mediacache.Bypass].Inc()
		r.Header[mediacache.GenerationHeader] = pastCaches
		return next.ServeHTTP(w, r)
	}
	useLargeWrites(r)
	result, err := c.cache.Serve(w, r, &c.config, func(w http.ResponseWriter, r *http.Request) error {
		r = c.prepare(w, r)
		work, _ := r.Context().Value(manifestWorkKey{}).(*decision)
		if work == nil || r.Method != http.MethodGet || len(r.Header["Range"]) > 0 {
			return next.ServeHTTP(w, r)
		}
		return work.fill(w, r, next)
	})
	c.metrics.CacheResults[result].Inc()
	switch {
	case errors.Is(err, context.Canceled):
		return caddyhttp.Error(statusClientClosedRequest, err)
	case errors.Is(err, context.DeadlineExceeded):
		return caddyhttp.Error(http.StatusGatewayTimeout, err)
	}
	return err
}

// fileVarsKey is the context key of what Caddy's directives `root` and `fs` have set before
// the cache. Without it, `file_server` after the cache would serve the working directory.
type fileVarsKey struct{}

type fileVars struct{ root, fs any }

func fileVarsOf(r *http.Request) fileVars {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	return fileVars{root: vars["root"], fs: vars["fs"]}
}

// variantOf returns a part of the key. It differs if the site has several roots, or gates
// that rewrite the same manifest differently. Its group is the video.
func variantOf(r *http.Request) (v mediacache.Variant) {
	vars := fileVarsOf(r)
	v.Text, _ = vars.root.(string)
	if vars.fs != nil || v.Text == "" && vars.root != nil {
		v.Text = fmt.Sprintf("%q %q", vars.root, vars.fs)
	}
	d := decisionOf(r)
	if d == nil {
		return v
	}
	v.Group, v.Generation = d.video, d.purged
	if d.rewritesInCache(r) {
		v.Text += d.gate.rewritingID
	}
	return v
}

// originContext returns the context of a request to the origin. Of the viewer's, it has
// the trace, the root of the site, a copy of the groups and the gate's work on manifests,
// because it may outlive it.
func originContext(r *http.Request) context.Context {
	ctx := oteltrace.ContextWithSpanContext(context.Background(), oteltrace.SpanContextFromContext(r.Context()))
	if d := decisionOf(r); d != nil && d.rewritesInCache(r) {
		ctx = context.WithValue(ctx, manifestWorkKey{}, d.forAll())
	}
	return withRouteGroups(context.WithValue(ctx, fileVarsKey{}, fileVarsOf(r)), r.Context())
}

// prepare gives a request of the cache what Caddy gives to requests of clients. A request
// that goes past the cache is a client's and has it already.
func (c *Cache) prepare(w http.ResponseWriter, r *http.Request) *http.Request {
	vars, isOfCache := r.Context().Value(fileVarsKey{}).(fileVars)
	if !isOfCache {
		return r
	}
	prepared := caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, c.server)
	if vars.root != nil {
		caddyhttp.SetVar(prepared.Context(), "root", vars.root)
	}
	if vars.fs != nil {
		caddyhttp.SetVar(prepared.Context(), "fs", vars.fs)
	}
	return prepared.WithContext(withRouteGroups(prepared.Context(), r.Context()))
}

// largeWrite is how much goes to a connection at once. Each write costs a system call and
// wakes the client up: in pieces of 64 KiB, Caddy's default, a megabyte costs half as much
// again. Still larger writes save nothing.
const largeWrite = 256 << 10

// useLargeWrites has Caddy pass larger writes on, unless write_max_chunk says otherwise. The
// timeout write_idle is for each write, so a shorter one than its default of a
// minute has smaller writes, and the slowest client that it tolerates stays about the same:
// 4 KiB a second.
func useLargeWrites(r *http.Request) {
	_, idle := caddyhttp.IdleTimeoutsFromContext(r.Context())
	if idle == nil || idle.MaxChunk != caddyhttp.DefaultMaxWriteChunk {
		return
	}
	size := largeWrite * min(idle.Deadline.Timeout, time.Minute) / time.Minute
	idle.MaxChunk = max(int(size), caddyhttp.DefaultMaxWriteChunk)
}

// ListenerWrapper makes answers of `signed_playback_cache` over HTTP/1.1 cheaper. TLS writes
// each record of 16 KiB to its connection by itself. The wrapper gathers the records of an
// answer and writes them in pieces of 64 KiB. Without TLS, it writes the header of an answer
// together with the body. It comes before `tls`, and changes nothing else.
type ListenerWrapper struct{ logger *zap.Logger }

// CaddyModule returns the Caddy module information.
func (*ListenerWrapper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.signed_playback",
		New: func() caddy.Module { return new(ListenerWrapper) },
	}
}

// UnmarshalCaddyfile parses the wrapper, which has no options:
//
//	signed_playback
func (*ListenerWrapper) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.Errf("%q: the listener wrapper signed_playback has no options", d.Val())
	}
	return nil
}

// Provision prepares the log.
func (l *ListenerWrapper) Provision(ctx caddy.Context) error {
	l.logger = ctx.Logger()
	return nil
}

// WrapListener implements caddy.ListenerWrapper.
func (l *ListenerWrapper) WrapListener(listener net.Listener) net.Listener {
	return recordconn.NewListener(listener, l.logger)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Cache)(nil)
	_ caddy.CleanerUpper          = (*Cache)(nil)
	_ caddyhttp.MiddlewareHandler = (*Cache)(nil)

	_ caddy.Provisioner     = (*ListenerWrapper)(nil)
	_ caddy.ListenerWrapper = (*ListenerWrapper)(nil)
	_ caddyfile.Unmarshaler = (*ListenerWrapper)(nil)
)
