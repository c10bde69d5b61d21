package uk.ac.manchester.tornado.api.exceptions;

/** The device has no half precision. */
public class TornadoDeviceFP16NotSupported extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoDeviceFP16NotSupported(String message) {
        super(message);
    }
}
