package playbackpath

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// checkNames refuses a decoded suffix if a file system may take one of its names
// for another. A second name of a file would evade the patterns of downloads.
//
//   - NTFS reads `downloads:x` as a stream of `downloads`, and Windows drops spaces
//     and dots at the end of a name. checkSegments refuses the dots.
//   - FAT and NTFS give a file a short name besides its own, like `DOWNLO~1`.
//   - APFS, HFS+ and ZFS ignore how accents are composed. A name is in one form
//     only, NFC.
//   - HFS+ and ext4 with casefold skip characters that are not visible.
func checkNames(decoded string) error {
	if strings.Contains(decoded, ":") || !norm.NFC.IsNormalString(decoded) || strings.ContainsFunc(decoded, isIgnorable) {
		return errName
	}
	for name := range strings.SplitSeq(decoded, "/") {
		if strings.HasSuffix(name, " ") || isShortName(name) {
			return errName
		}
	}
	return nil
}

func isIgnorable(c rune) bool {
	return c >= utf8.RuneSelf && unicode.In(c, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// isShortName recognizes the short names of Windows: up to eight characters that
// end with a tilde and a number, and an extension of up to three.
func isShortName(name string) bool {
	base, extension, _ := strings.Cut(name, ".")
	tilde := strings.LastIndexByte(base, '~')
	return tilde > 0 && tilde < len(base)-1 && strings.Trim(base[tilde+1:], "0123456789") == "" &&
		utf8.RuneCountInString(base) <= 8 && utf8.RuneCountInString(extension) <= 3
}

// foldName returns the form in which names are equal that a file system that
// ignores case may take for one name. ext4 with casefold reads ß as ss, for
// example, and ZFS can read full-width letters as ASCII.
func foldName(name string) string {
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			name = norm.NFKC.String(name)
			name = strings.ToUpper(cases.Fold().String(name)) // upper case of a dotless i is I
			return norm.NFKC.String(strings.ToLower(name))
		}
	}
	return strings.ToLower(name)
}
