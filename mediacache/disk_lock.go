//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package mediacache

import (
	"os"
	"syscall"
)

// lockFile locks a file until it is closed, or the process ends.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
