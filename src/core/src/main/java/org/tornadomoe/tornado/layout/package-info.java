/** Orders in which weights lie on a device, their partition into arrays, and what GEMMs are launched with. */
@NullMarked
package org.tornadomoe.tornado.layout;

import org.jspecify.annotations.NullMarked;
