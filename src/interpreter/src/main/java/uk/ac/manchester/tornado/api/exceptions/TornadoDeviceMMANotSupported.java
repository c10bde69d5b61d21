package uk.ac.manchester.tornado.api.exceptions;

/** The device has no matrix instructions. */
public class TornadoDeviceMMANotSupported extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoDeviceMMANotSupported(String message) {
        super(message);
    }
}
