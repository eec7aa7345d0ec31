// SPDX-License-Identifier: Apache-2.0

// A client of a C library: greet HOST PORT prints what a server says first.

#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct addrinfo *list, hints = { .ai_socktype = SOCK_STREAM };
	char text[256];
	int fd = -1, error;
	ssize_t n;

	if (argc != 3)
		return 2;
	error = getaddrinfo(argv[1], argv[2], &hints, &list);
	if (error) {
		fprintf(stderr, "greet: %s\n", gai_strerror(error));
		return 1;
	}
	fd = socket(list->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, list->ai_addr, list->ai_addrlen)) {
		perror("greet: connect");
		return 1;
	}
	while ((n = read(fd, text, sizeof(text))) > 0)
		fwrite(text, 1, n, stdout);
	return n != 0;
}
