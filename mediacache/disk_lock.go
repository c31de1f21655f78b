//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package mediacache

import (
	"io/fs"
	"os"
	"syscall"
)

// lockFile locks a file until it is closed, or the process ends.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// ownerOf returns the id of the user to whom a file belongs.
func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }
