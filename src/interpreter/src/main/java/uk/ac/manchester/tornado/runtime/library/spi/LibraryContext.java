package uk.ac.manchester.tornado.runtime.library.spi;

/** A provider's state for one device and one execution plan. */
public interface LibraryContext {}
