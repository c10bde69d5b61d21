package uk.ac.manchester.tornado.api.enums;

/** The times at which an array is copied. */
public class DataTransferMode {
    /** Before the first execution only. */
    public static final int FIRST_EXECUTION = 0;
    /** At every execution. */
    public static final int EVERY_EXECUTION = 1;
    /** On request. */
    public static final int UNDER_DEMAND = 2;

    public DataTransferMode() {}
}
