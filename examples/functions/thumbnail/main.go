// Command thumbnail is a function that makes pictures small: it reads a PNG or
// JPEG on stdin and writes the same kind on stdout, at most 128 pixels wide and
// high. A picture that is small enough keeps its size.
//
//	GOOS=wasip1 GOARCH=wasm go build -o thumbnail.wasm ./examples/functions/thumbnail
package main

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"os"

	"golang.org/x/image/draw"
)

const (
	side      = 128        // pixels, the longest side of a thumbnail
	maxPixels = 16_000_000 // of the picture, so that it fits the memory of the manifest
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "thumbnail:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read picture: %w", err)
	}
	// A few bytes can announce a picture of gigabytes: look before unpacking.
	head, format, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not a PNG or JPEG: %w", err)
	}
	if head.Width <= 0 || head.Height <= 0 || head.Width > maxPixels/head.Height {
		return fmt.Errorf("%d×%d is more than %d pixels", head.Width, head.Height, maxPixels)
	}
	picture, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("decode %s: %w", format, err)
	}
	small := shrink(picture)
	switch format {
	case "jpeg":
		return jpeg.Encode(out, small, &jpeg.Options{Quality: 85})
	case "png":
		return png.Encode(out, small)
	}
	return errors.New("unknown format " + format)
}

// shrink scales a picture down to fit the side, with its proportions kept.
func shrink(picture image.Image) image.Image {
	w, h := picture.Bounds().Dx(), picture.Bounds().Dy()
	longest := max(w, h)
	if longest <= side {
		return picture
	}
	small := image.NewRGBA(image.Rect(0, 0, max(1, w*side/longest), max(1, h*side/longest)))
	draw.CatmullRom.Scale(small, small.Bounds(), picture, picture.Bounds(), draw.Src, nil)
	return small
}
