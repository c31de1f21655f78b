//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package mediacache

import (
	"errors"
	"os"
)

// lockFile refuses: two processes would evict each other's files.
func lockFile(*os.File) error { return errors.ErrUnsupported }
