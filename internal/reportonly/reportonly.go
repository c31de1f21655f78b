// Package reportonly says which checks of a gate only report, and let requests through that fail.
package reportonly

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// Check is a group of steps of the gate that can be in report-only mode together.
// Method and Path cannot, because without them nobody knows which video the
// request is for.
type Check int

// The checks.
const (
	Token Check = iota
	Schedule
	Origins
	Rules
	Downloads
	Sessions
	Admission // a part of the sessions
	Method
	Path
)

// Checks is the number of checks that can be in report-only mode. They come first.
const Checks = Method

var names = [...]string{
	Token: "token", Schedule: "schedule", Origins: "origins", Rules: "rules", Downloads: "downloads", Sessions: "sessions", Admission: "admission",
	Method: "method", Path: "path",
}

func (c Check) String() string { return names[c] }

// Set is a set of checks in report-only mode.
type Set uint8

// All has all checks that can be in report-only mode.
const All Set = 1<<Checks - 1

// Has reports whether a check is in the set.
func (s Set) Has(c Check) bool { return s&(1<<c) != 0 }

func (s Set) String() string {
	var list []string
	for c := range Checks {
		if s.Has(c) {
			list = append(list, c.String())
		}
	}
	return strings.Join(list, ", ")
}

// Setting is what a part of the config says, the zero value if it says nothing.
type Setting struct {
	given  bool
	Checks Set
}

var errTwice = errors.New("report_only: `enforce off` reports all checks already; give one of the two")

// Compile compiles the options enforce and report_only.
func Compile(enforce *bool, reportOnly []string) (Setting, error) {
	s := Setting{given: enforce != nil || len(reportOnly) > 0}
	for _, name := range reportOnly {
		c := slices.Index(names[:Checks], name)
		if c < 0 {
			return Setting{}, fmt.Errorf("report_only %q: want some of %s", name, All)
		}
		s.Checks |= 1 << c
	}
	if enforce != nil && !*enforce {
		if len(reportOnly) > 0 {
			return Setting{}, errTwice
		}
		s.Checks = All
	}
	return s, nil
}

// Or returns s if the config has it, else outer.
func (s Setting) Or(outer Setting) Setting {
	if s.given {
		return s
	}
	return outer
}

// Warn logs report-only mode at start, because operators forget that they have
// turned it on. of is to what the setting applies.
func (s Setting) Warn(logger *zap.Logger, of string) {
	switch s.Checks {
	case 0:
	case All:
		logger.Warn("NOTHING IS REFUSED: enforce is off, so refusals are only reported", zap.String("of", of))
	default:
		logger.Warn("NOT EVERYTHING IS REFUSED: some checks only report", zap.String("of", of), zap.Stringer("report_only", s.Checks))
	}
}
