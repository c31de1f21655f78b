package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/token"
)

func keygenCommand() *cobra.Command {
	var opts keygenOptions
	cmd := &cobra.Command{
		Use:   "keygen [--kid <id>] [--output <file>] [--public <file>]",
		Short: "Makes a key pair",
		Long: `
Makes an RSA-2048 key pair. Your back end signs with the private key. The gate
needs only the public key, as key_file:

	$ caddy signed-playback keygen -o key.json --public public.json

keygen does not overwrite files, and only you can read the new ones (mode 0600).
If the gate runs as another user, let it read the public file. The private file has
the members id, pem and jwk, as the keys API returns them, and jwks, which is the
content of the public file. Without -o, keygen prints the private file.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return opts.keygen(terminalOf(cmd)) },
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.keyID, "kid", "", "the key's `id` (default: 32 random hexadecimal digits)")
	flags.StringVarP(&opts.output, "output", "o", "", "the new `file` for the private key (default: standard output)")
	flags.StringVar(&opts.public, "public", "", "the new `file` for the public key, a JWKS (default: none)")
	return cmd
}

type keygenOptions struct{ keyID, output, public string }

// generatedKey is the output of keygen: a key in the form of the keys API, and
// its public key.
type generatedKey struct {
	ID   string       `json:"id"`
	PEM  string       `json:"pem"`
	JWK  string       `json:"jwk"`
	JWKS publicKeySet `json:"jwks"`
}

// publicKeySet is a JWKS (RFC 7517 section 5).
type publicKeySet struct {
	Keys []json.RawMessage `json:"keys"`
}

func (opts keygenOptions) keygen(t terminal) error {
	if opts.output != "" && opts.output == opts.public {
		return fmt.Errorf("--output and --public are both %q; the private and the public key need a file each", opts.output)
	}
	key, err := token.GenerateSigningKey(opts.keyID)
	if err != nil {
		return fmt.Errorf("--kid: %w", err)
	}
	generated := generatedKey{ID: key.ID(), PEM: key.PEM()}
	if generated.JWK, err = key.JWK(); err != nil {
		return err
	}
	public, err := key.Public().JWK()
	if err != nil {
		return err
	}
	generated.JWKS.Keys = []json.RawMessage{public}
	if opts.public != "" {
		if err := writeNewFile(opts.public, generated.JWKS); err != nil {
			return fmt.Errorf("--public %q: %w", opts.public, err)
		}
	}
	if opts.output == "" {
		return writeJSON(t.out, generated)
	}
	if err := writeNewFile(opts.output, generated); err != nil {
		if opts.public != "" {
			_ = os.Remove(opts.public)
		}
		return fmt.Errorf("--output %q: %w", opts.output, err)
	}
	return nil
}

// writeNewFile writes a value as JSON to a file that does not exist.
func writeNewFile(path string, value any) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return errors.New("the file exists, and its key may be in use; name a new file")
	}
	if err != nil {
		return err
	}
	if err := errors.Join(writeJSON(file, value), file.Close()); err != nil {
		_ = os.Remove(path)
		return err
	}
	return nil
}
