package uk.ac.manchester.tornado.api.exceptions;

/** No OpenCL platform was found. */
public class TornadoNoOpenCLPlatformException extends RuntimeException {
    private static final long serialVersionUID = 1;

    public TornadoNoOpenCLPlatformException(String message) {
        super(message);
    }
}
